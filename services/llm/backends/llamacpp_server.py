"""The child process that runs llama.cpp's server for one GGUF file (`python -m services.llm.backends.llamacpp_server`).

A process of its own, so that a crash in native code costs one model and not the service. Reads its parameters as one
line of JSON, loads the model, answers with its URL on standard output, and ends when standard input does: so it never
outlives its parent, not even one that was killed.
"""

import json
import os
import signal
import sys
from typing import Any

import xllamacpp

_HTTP_THREADS_BESIDES = 4
"""Each stream occupies a thread of the server: these answer health checks and counts meanwhile."""
_PROMPT_CACHE_MIB = 256
"""Host memory for prompts of idle slots; the server's own default is 8 GiB."""


def main() -> None:
    """Serve until standard input ends."""
    # The parent decides when to stop; Ctrl-C reaches the whole terminal's process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Kept in a name: dropping it stops the server.
    server = xllamacpp.Server(_params(json.loads(sys.stdin.readline())))
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # Requests under way belong to a parent that is gone: nothing to wait for.
    os._exit(0)


def _params(wanted: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = wanted["path"]
    params.model_alias = {wanted["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [wanted["api_key"]]
    params.n_parallel = wanted["parallel"]
    params.n_ctx = wanted["context_length"] * wanted["parallel"]
    params.cpuparams.n_threads = wanted["threads"]
    params.cpuparams_batch.n_threads = wanted["threads"]
    params.n_threads_http = wanted["connections"] + _HTTP_THREADS_BESIDES
    params.embedding = wanted["embedding"]
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.endpoint_slots = True
    params.offline = True
    params.ui = False
    params.verbosity = 1
    return params


if __name__ == "__main__":
    main()
