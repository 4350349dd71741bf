"""What can go wrong with models, in words for the caller. No message holds a prompt, an answer or a key."""

from collections.abc import Iterable

from services.kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

_LISTED = 20
"""Models named in a message at most."""


class ModelNotFoundError(NotFoundError):
    """No model of that name and ability is configured."""

    reason = "MODEL_NOT_FOUND"

    def __init__(self, name: str, *, existing: Iterable[str], ability: str) -> None:
        names = sorted(existing)
        listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        wanted = f"There is no model {name[:100]!r} that can {ability}." if name else f"No model can {ability}."
        choice = f"There are: {listed}." if names else "None is configured: set HEADRACE_LLM_MODELS."
        super().__init__(f"{wanted} {choice}", metadata={"model": name[:100]})


class ModelUnavailableError(UnavailableError):
    """The model's server does not answer, or not as it should. Trying again may help."""

    reason = "MODEL_UNAVAILABLE"

    def __init__(self, model: str, why: str, *, retry_after: float = 1.0) -> None:
        super().__init__(f"Model {model!r}: {why}", metadata={"model": model}, retry_after=retry_after)


class ModelMisconfiguredError(FailedPreconditionError):
    """The model can not be used until an operator changes its settings."""

    reason = "MODEL_MISCONFIGURED"

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"Model {model!r}: {why}", metadata={"model": model})


class ModelRefusedError(InvalidArgumentError):
    """The model's server understood the request and refuses it."""

    reason = "MODEL_REFUSED_REQUEST"

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"The server of model {model!r} refuses the request: {why}", metadata={"model": model})


class PromptTooLongError(InvalidArgumentError):
    """The prompt, or prompt and answer, do not fit."""

    reason = "PROMPT_TOO_LONG"

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"The prompt is too long for model {model!r}: {why}", metadata={"model": model})


class QueueFullError(ResourceExhaustedError):
    """More calls wait for this model than its queue holds."""

    reason = "QUEUE_FULL"

    def __init__(self, model: str, *, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} calls are waiting for model {model!r} already. Try again in {retry_after:.0f} s.",
            metadata={"model": model},
            retry_after=retry_after,
        )


class ModelRateLimitedError(ResourceExhaustedError):
    """The model's server asks for fewer calls."""

    reason = "MODEL_RATE_LIMITED"

    def __init__(self, model: str, *, retry_after: float) -> None:
        super().__init__(
            f"The server of model {model!r} limits the rate of calls. Try again in {retry_after:.0f} s.",
            metadata={"model": model},
            retry_after=retry_after,
        )


class UnsupportedError(InvalidArgumentError):
    """The backend has no way to do this."""

    reason = "UNSUPPORTED"

    def __init__(self, model: str, what: str) -> None:
        super().__init__(f"Model {model!r} does not {what}.", metadata={"model": model})
