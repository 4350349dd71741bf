"""What goes wrong outside, as failures that the author of a workflow can act on."""

from services.executor.egress.errors import EgressError
from services.executor.handlers.base import HandlerError, RetryableError, TerminalError
from services.kit.errors import (
    ConflictError,
    DeadlineExceededError,
    DomainError,
    InternalError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

# What may be different the next time. An expired grant is among them: the next attempt comes with a new one.
_PASSING = (
    ConflictError,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)


def failure_of_call(error: DomainError) -> HandlerError:
    """The failure that an error of another service means. Its reason and message are for people already."""
    details = {"violations": [{"path": item.path, "message": item.message} for item in error.violations[:20]]}
    if isinstance(error, _PASSING):
        return RetryableError(error.reason, error.message, retry_after=error.retry_after)
    return TerminalError(error.reason, error.message, details=details if error.violations else None)


def failure_of_egress(error: EgressError) -> HandlerError:
    """The failure that a refused or broken connection means."""
    return (RetryableError if error.retryable else TerminalError)(error.reason, error.message)
