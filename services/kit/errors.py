"""The errors that services raise and clients meet.

    DomainError
      InvalidArgumentError        violations: what is wrong with the input, all of it
        IdempotencyKeyReusedError the same idempotency key with other content
      UnauthenticatedError
      PermissionDeniedError
      NotFoundError               also for what belongs to another project
      AlreadyExistsError
      ConflictError               something moved on; re-read and retry
        RevisionMismatchError     the expected revision is stale
      FailedPreconditionError
      ResourceExhaustedError      retry_after
      UnavailableError            retry_after
      DeadlineExceededError
      InternalError               a bug or a broken dependency; masked for callers

A class says what kind of thing went wrong; `reason` says exactly what, in a word that never changes. No class knows a
status code: `grpc_server` and the gateway's `problems` each hold one table.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with an input.

    `code` is UPPER_SNAKE and stable, `message` a sentence, `path` a JSON path such as `nodes[2].config.url`.
    """

    code: str
    message: str
    path: str = ""
    node_key: str = ""
    severity: str = "error"


class DomainError(Exception):
    """Base of everything that a caller may be told.

    `message` is shown to people: what was wrong, where, what to do. `metadata` are short strings for programs.
    A service gives its own reason by subclassing or by the `reason` argument.
    """

    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: dict[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None = unknown."""


class InvalidArgumentError(DomainError):
    """The request cannot be right, whatever the state of the system."""

    reason = "INVALID_ARGUMENT"


class IdempotencyKeyReusedError(InvalidArgumentError):
    """An idempotency key came again with other content."""

    reason = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self, message: str = "", **details: object) -> None:
        super().__init__(
            message or "This Idempotency-Key was used before with a different request. Use a new key for a new request."
        )


class UnauthenticatedError(DomainError):
    """No valid proof of who is calling."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(DomainError):
    """The caller is known and may not do this."""

    reason = "PERMISSION_DENIED"


class NotFoundError(DomainError):
    """The thing does not exist, or not for this caller."""

    reason = "NOT_FOUND"


class AlreadyExistsError(DomainError):
    """A thing of that name exists."""

    reason = "ALREADY_EXISTS"


class ConflictError(DomainError):
    """Someone else changed the thing at the same time; read it again and retry."""

    reason = "CONFLICT"


class RevisionMismatchError(ConflictError):
    """The revision that the caller expected is not the present one."""

    reason = "REVISION_MISMATCH"

    def __init__(self, message: str = "", *, expected: int = 0, actual: int = 0, **details: object) -> None:
        super().__init__(
            message or f"Revision {expected} is out of date; it is {actual} now. Read it again and repeat the change.",
            metadata={"expected": str(expected), "actual": str(actual)},
        )


class FailedPreconditionError(DomainError):
    """The request is right in itself but not in the present state."""

    reason = "FAILED_PRECONDITION"


class ResourceExhaustedError(DomainError):
    """A limit is reached; wait `retry_after` seconds."""

    reason = "RESOURCE_EXHAUSTED"


class UnavailableError(DomainError):
    """A part of the system does not answer now; try again."""

    reason = "UNAVAILABLE"


class DeadlineExceededError(DomainError):
    """The answer did not come in time; what was asked for may still happen."""

    reason = "DEADLINE_EXCEEDED"


class InternalError(DomainError):
    """A bug or a broken dependency. Callers see an incident id and nothing else."""

    reason: str = "INTERNAL"
    public_message: ClassVar[str] = "Something went wrong on our side. Quote the incident id when you report it."
