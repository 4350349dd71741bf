"""Where a model's files are: a local path, or a repository of the Hugging Face hub, fetched into its cache.

`huggingface_hub` obeys its own environment: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.llm.domain.errors import ModelMisconfiguredError, ModelUnavailableError

FindFile = Callable[[], Awaitable[Path]]


def local(model: str, path: Path) -> FindFile:
    """Gives a path of this machine; ModelMisconfiguredError when nothing is there."""

    async def find() -> Path:
        if not await asyncio.to_thread(path.exists):
            raise ModelMisconfiguredError(model, f"there is no {path}. Set `path` in HEADRACE_LLM_MODELS.")
        return path

    return find


def from_hub(model: str, *, repo: str, file: str | None, revision: str | None) -> FindFile:
    """Gives a file of a repository, or the folder of the whole repository when `file` is None.

    Fetches what is not in the cache, without a time limit; a repetition goes on where it stopped.
    """

    async def find() -> Path:
        return await asyncio.to_thread(_fetch, model, repo, file, revision)

    return find


def _fetch(model: str, repo: str, file: str | None, revision: str | None) -> Path:
    # Imported here: a third of a second and 30 MiB that most set-ups do not need.
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if file is not None:
            return Path(hf_hub_download(repo, file, revision=revision))
        return Path(snapshot_download(repo, revision=revision))
    except LocalEntryNotFoundError as error:
        raise ModelUnavailableError(
            model, f"{repo} is not in the cache of the Hugging Face hub, and the hub cannot be reached.", retry_after=30
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        what = f"{repo}/{file}" if file else repo
        raise ModelMisconfiguredError(
            model,
            f"the Hugging Face hub has no {what} for this HF_TOKEN. Check `repo`, `file` and `revision` in "
            "HEADRACE_LLM_MODELS.",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelUnavailableError(
            model, f"fetching {repo} from the Hugging Face hub failed ({type(error).__name__}).", retry_after=30
        ) from error
