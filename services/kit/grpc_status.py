"""DomainError to gRPC status and back: the one table, and the google.rpc details that carry the fields.

Details follow AIP-193: `ErrorInfo` (reason, metadata), `BadRequest` (violations), `RetryInfo`. A violation's code, node
key and severity have no place in `BadRequest.FieldViolation`, so its `reason` holds them, separated by `|`.
"""

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.kit import errors
from services.kit.errors import DomainError, Violation

DOMAIN = "headrace"

# Order matters from class to code: the first class that fits.
_TABLE: tuple[tuple[type[DomainError], grpc.StatusCode], ...] = (
    (errors.InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (errors.ConflictError, grpc.StatusCode.ABORTED),
    (errors.FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.InternalError, grpc.StatusCode.INTERNAL),
)
_CLASS_BY_CODE = {code: kind for kind, code in _TABLE}
# Reasons whose class says more than the code alone does.
_CLASS_BY_REASON: dict[str, type[DomainError]] = {
    "IDEMPOTENCY_KEY_REUSED": errors.IdempotencyKeyReusedError,
    "REVISION_MISMATCH": errors.RevisionMismatchError,
}


def code_of(error: DomainError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return next((code for kind, code in _TABLE if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]  # every detail below is a protobuf message
    return packed


def error_to_status(error: DomainError) -> status_pb2.Status:
    """The google.rpc.Status that carries an error, with all its fields."""
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))]
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=item.path, description=item.message, reason=f"{item.code}|{item.node_key}|{item.severity}"
            )
            for item in error.violations
        ]
        details.append(_pack(error_details_pb2.BadRequest(field_violations=violations)))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    number = getattr(code_pb2, code_of(error).name)
    return status_pb2.Status(code=number, message=error.message, details=details)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: DomainError) -> None:
    """End a call with an error."""
    status = rpc_status.to_status(error_to_status(error))
    await context.abort(status.code, status.details, tuple(status.trailing_metadata))


def is_unreachable(failure: grpc.aio.AioRpcError) -> bool:
    """No server of ours has answered: there is no connection, or it broke."""
    return failure.code() in _UNREACHABLE and rpc_status.from_call(failure) is None


# CANCELLED: by a server that ends. A call that this side gives up raises CancelledError instead.
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def error_from_rpc(failure: grpc.aio.AioRpcError) -> DomainError:
    """The DomainError that a failed call stands for, rebuilt from its status.

    A failure that no server of ours described (no connection, a deadline of our own) becomes the class of its code.
    """
    code = failure.code()
    status = rpc_status.from_call(failure)
    if status is None:
        return _undescribed(code, failure)
    reason, metadata, retry_after = "", dict[str, str](), None
    violations: tuple[Violation, ...] = ()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = tuple(_violation(item) for item in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    kind = _CLASS_BY_REASON.get(reason) or _CLASS_BY_CODE.get(code, errors.InternalError)
    error = kind(status.message)
    error.reason = reason or error.reason
    error.metadata, error.violations, error.retry_after = metadata, violations, retry_after
    return error


def _violation(item: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    code, _, rest = item.reason.partition("|")
    node_key, _, severity = rest.partition("|")
    return Violation(
        code=code, message=item.description, path=item.field, node_key=node_key, severity=severity or "error"
    )


def _undescribed(code: grpc.StatusCode, failure: grpc.aio.AioRpcError) -> DomainError:
    if code in _UNREACHABLE:
        return errors.UnavailableError("A service does not answer at the moment. Try again shortly.", retry_after=1.0)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceededError("A service did not answer in time.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # grpcio's own limit on message sizes ends a call with this code.
        return errors.InvalidArgumentError("The message is too large.", reason="MESSAGE_TOO_LARGE")
    kind = _CLASS_BY_CODE.get(code, errors.InternalError)
    return kind(failure.details() or code.name)
