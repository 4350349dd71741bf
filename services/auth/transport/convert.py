"""Between the contract's messages and the domain."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from headrace.auth.v1 import auth_pb2

from services.auth.domain import model
from services.kit.errors import InvalidArgumentError, Violation
from services.kit.paging import decode_page_token, encode_page_token, page_token_error


def timestamp(value: datetime | None) -> Timestamp | None:
    """None for none: the field stays absent."""
    if value is None:
        return None
    converted = Timestamp()
    converted.FromDatetime(value)
    return converted


def moment(message: Any, field: str) -> datetime | None:
    """The time in a message's field, None when it is absent. Raises InvalidArgumentError beyond the year 9999."""
    if not message.HasField(field):
        return None
    try:
        value: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{field} is not a time.", violations=(Violation("INVALID_TIME", "is not a time", field),)
        ) from error
    return value


def place(page_token: str) -> model.Place | None:
    """Where a page starts. Raises InvalidArgumentError for a token that no list gave."""
    values = decode_page_token(page_token, length=2)
    if values is None:
        return None
    try:
        created_at = datetime.fromisoformat(values[0])
        if created_at.tzinfo is None:
            raise page_token_error()
        return model.Place(created_at, UUID(values[1]))
    except (TypeError, ValueError, AttributeError) as error:
        raise page_token_error() from error


def next_page_token(items: list[tuple[datetime, UUID]], size: int) -> str:
    """The token after the first `size` items of a list that was asked for one more; empty when there is no more."""
    if len(items) <= size:
        return ""
    created_at, key = items[size - 1]
    return encode_page_token([created_at.isoformat(), str(key)])


def role(value: "auth_pb2.Role.ValueType") -> model.Role:
    """The role in a request. Raises InvalidArgumentError for none and for unknown ones."""
    try:
        return model.Role(value)
    except ValueError as error:
        raise InvalidArgumentError(
            "role must be viewer, editor, admin or owner.",
            violations=(Violation("INVALID_ROLE", "must be viewer, editor, admin or owner", "role"),),
        ) from error


def role_message(value: model.Role) -> "auth_pb2.Role.ValueType":
    """A role of the contract."""
    return auth_pb2.Role.Value(f"ROLE_{value.name}")


def user_message(user: model.User) -> auth_pb2.User:
    return auth_pb2.User(
        id=str(user.id),
        email=user.email,
        name=user.name,
        created_at=timestamp(user.created_at),
        personal_project_id=str(user.personal_project_id),
    )


def project_message(project: model.Project) -> auth_pb2.Project:
    return auth_pb2.Project(
        id=str(project.id),
        name=project.name,
        created_at=timestamp(project.created_at),
        revision=project.revision,
        role=role_message(project.role),
    )


def member_message(member: model.Member) -> auth_pb2.Member:
    return auth_pb2.Member(
        user_id=str(member.user_id),
        email=member.email,
        name=member.name,
        role=role_message(member.role),
        created_at=timestamp(member.created_at),
    )


def api_key_message(key: model.ApiKey) -> auth_pb2.ApiKey:
    return auth_pb2.ApiKey(
        id=str(key.id),
        project_id=str(key.project_id),
        name=key.name,
        prefix=key.prefix,
        scopes=key.scopes,
        created_at=timestamp(key.created_at),
        expires_at=timestamp(key.expires_at),
        last_used_at=timestamp(key.last_used_at),
    )


def token_message(pair: model.TokenPair) -> auth_pb2.TokenPair:
    return auth_pb2.TokenPair(
        access_token=pair.access_token,
        refresh_token=pair.refresh_token,
        expires_in_seconds=pair.expires_in_seconds,
    )


def credential_message(credential: model.Credential) -> auth_pb2.Credential:
    return auth_pb2.Credential(
        id=str(credential.id),
        project_id=str(credential.project_id),
        name=credential.name,
        type=credential.type,
        created_at=timestamp(credential.created_at),
        updated_at=timestamp(credential.updated_at),
        revision=credential.revision,
    )
