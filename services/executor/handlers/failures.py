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
_OPEN = (DeadlineExceededError, InternalError, UnavailableError)
"""After these the call may have done what it should."""


def failure_of_call(error: DomainError) -> HandlerError:
    """The failure that an error of another service means. Its reason and message are for people already."""
    details = {"violations": [{"path": item.path, "message": item.message} for item in error.violations[:20]]}
    if isinstance(error, _PASSING):
        is_unknown = isinstance(error, _OPEN)
        return RetryableError(error.reason, error.message, retry_after=error.retry_after, outcome_unknown=is_unknown)
    return TerminalError(error.reason, error.message, details=details if error.violations else None)


def failure_of_egress(error: EgressError) -> HandlerError:
    """The failure that a refused or broken connection means."""
    if error.retryable:
        return RetryableError(error.reason, error.message, outcome_unknown=error.outcome_unknown)
    return TerminalError(error.reason, error.message)
