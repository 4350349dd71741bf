"""Users, tokens, API keys, projects, members and credentials from proto."""

from typing import Any

from headrace.auth.v1 import auth_pb2

from services.gateway.convert.common import time_to_json

ROLES: "dict[str, auth_pb2.Role.ValueType]" = {
    "viewer": auth_pb2.ROLE_VIEWER,
    "editor": auth_pb2.ROLE_EDITOR,
    "admin": auth_pb2.ROLE_ADMIN,
    "owner": auth_pb2.ROLE_OWNER,
}
_ROLE_NAMES: dict[int, str] = {number: name for name, number in ROLES.items()}


def role_name(number: int) -> str:
    """The role's name in REST."""
    return _ROLE_NAMES.get(number, "viewer")


def tokens_to_json(tokens: auth_pb2.TokenPair) -> dict[str, Any]:
    """A pair of tokens."""
    return {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "token_type": "bearer",
        "expires_in": tokens.expires_in_seconds,
    }


def user_to_json(user: auth_pb2.User) -> dict[str, Any]:
    """A user."""
    return {"id": user.id, "email": user.email, "name": user.name, "created_at": time_to_json(user, "created_at")}


def api_key_to_json(key: auth_pb2.ApiKey) -> dict[str, Any]:
    """An API key without its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "project_id": key.project_id,
        "created_at": time_to_json(key, "created_at"),
        "expires_at": time_to_json(key, "expires_at"),
        "last_used_at": time_to_json(key, "last_used_at"),
    }


def project_to_json(project: auth_pb2.Project) -> dict[str, Any]:
    """A project with the caller's role."""
    return {
        "id": project.id,
        "name": project.name,
        "role": role_name(project.role),
        "revision": project.revision,
        "created_at": time_to_json(project, "created_at"),
    }


def member_to_json(member: auth_pb2.Member) -> dict[str, Any]:
    """A member."""
    return {
        "user_id": member.user_id,
        "email": member.email,
        "name": member.name,
        "role": role_name(member.role),
        "created_at": time_to_json(member, "created_at"),
    }


def credential_to_json(credential: auth_pb2.Credential) -> dict[str, Any]:
    """A credential without its data."""
    return {
        "id": credential.id,
        "name": credential.name,
        "type": credential.type,
        "revision": credential.revision,
        "created_at": time_to_json(credential, "created_at"),
        "updated_at": time_to_json(credential, "updated_at"),
    }
