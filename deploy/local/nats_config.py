"""The configuration of a NATS server for Headrace.

Two users: the executor, and the worker, who may ask the executor and take wake-ups, and cannot publish one or
change a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EXECUTOR_SUBJECTS = ["headrace.>", "$JS.API.>", "$JS.ACK.>", "_INBOX.>"]
_WORKER_PUBLISHES = [
    "headrace.executor.>",
    "headrace.runs.>",
    "$JS.API.CONSUMER.MSG.NEXT.>",
    "$JS.API.CONSUMER.INFO.>",
    "$JS.API.STREAM.INFO.>",
    "$JS.ACK.>",
    "_INBOX.>",
]
_WORKER_HEARS = ["_INBOX.>", "headrace.worker.>"]


def server_config(*, listen: str, store_dir: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return a configuration with JetStream and both users; the server's format includes JSON.

    Args:
        passwords: of `executor` and `worker`.
    """

    def user(name: str, publishes: list[str], hears: list[str]) -> dict[str, Any]:
        permissions = {"publish": {"allow": publishes}, "subscribe": {"allow": hears}}
        return {"user": name, "password": passwords[name], "permissions": permissions}

    return {
        "listen": listen,
        "server_name": "headrace",
        "max_payload": 8 * 1024 * 1024,
        "jetstream": {
            "store_dir": store_dir,
            # Wake-ups are small, and lost ones are sent again.
            "max_memory_store": 256 * 1024 * 1024,
            "max_file_store": 2 * 1024**3,
        },
        "authorization": {
            "users": [
                user("executor", publishes=_EXECUTOR_SUBJECTS, hears=_EXECUTOR_SUBJECTS),
                user("worker", publishes=_WORKER_PUBLISHES, hears=_WORKER_HEARS),
            ]
        },
    }
