"""Tables of the schema `auth`, as the queries see them. The revisions in `migrations/` make them.

Every row belongs to a user or a project, and every query names which; `login_throttles` alone holds keyed hashes that
belong to nobody.
"""

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY

metadata = MetaData(
    schema="auth",
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)


def _time(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable)


def _now(name: str) -> Column[object]:
    return Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=func.now())


def _revision() -> Column[int]:
    return Column("revision", BigInteger, nullable=False, server_default="1")


projects = Table(
    "projects",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    # The user whose own project it is; NULL for shared ones. No foreign key: users refer to projects already.
    Column("personal_user_id", Uuid),
    # Of the create call, to tell a repetition from a reuse; NULL without an idempotency key.
    Column("request_hash", LargeBinary),
    _now("created_at"),
    _revision(),
    UniqueConstraint("personal_user_id"),
)

users = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    # Normalised: lower case, no spaces.
    Column("email", Text, nullable=False),
    Column("name", Text, nullable=False),
    # `v1$` and a bcrypt string over a keyed hash of the password (domain/passwords.py).
    Column("password_hash", Text, nullable=False),
    Column("personal_project_id", Uuid, ForeignKey(projects.c.id), nullable=False),
    Column("request_hash", LargeBinary),
    _now("created_at"),
    UniqueConstraint("email"),
)

memberships = Table(
    "memberships",
    metadata,
    Column("project_id", Uuid, ForeignKey(projects.c.id, ondelete="CASCADE"), primary_key=True),
    Column("user_id", Uuid, ForeignKey(users.c.id, ondelete="CASCADE"), primary_key=True),
    Column("role", SmallInteger, nullable=False),
    _now("created_at"),
    CheckConstraint("role BETWEEN 1 AND 4", name="role"),
    Index("memberships_user_id_idx", "user_id"),
)

# One row per login. Its refresh tokens are not stored: each is an HMAC over the row's identity, seed and a counter.
refresh_families = Table(
    "refresh_families",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("seed", LargeBinary, nullable=False),
    # Number of the one token that is good now.
    Column("counter", Integer, nullable=False, server_default="1"),
    _now("created_at"),
    _now("rotated_at"),
    _time("idle_expires_at"),
    _time("expires_at"),
    _time("revoked_at", nullable=True),
    Index("refresh_families_user_id_expires_at_idx", "user_id", "expires_at"),
)

# Back-off of logins: a generic cell rate per key. A row in the past says the same as no row.
login_throttles = Table(
    "login_throttles",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    _time("busy_until"),
    Index("login_throttles_busy_until_idx", "busy_until"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", Uuid, ForeignKey(projects.c.id, ondelete="CASCADE"), nullable=False),
    Column("user_id", Uuid, ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    # The secret is an HMAC over the id and this, under a key that is not in the database.
    Column("seed", LargeBinary, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("request_hash", LargeBinary),
    _now("created_at"),
    _time("expires_at", nullable=True),
    _time("last_used_at", nullable=True),
    UniqueConstraint("secret_hash"),
    Index("api_keys_project_id_user_id_created_at_idx", "project_id", "user_id", "created_at", "id"),
)

# One key per project, under which its credentials are encrypted; itself encrypted under HEADRACE_AUTH_CREDENTIAL_KEY.
data_keys = Table(
    "data_keys",
    metadata,
    Column("project_id", Uuid, ForeignKey(projects.c.id, ondelete="CASCADE"), primary_key=True),
    Column("wrapped_by", Text, nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    _now("created_at"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", Uuid, ForeignKey(projects.c.id, ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    # Raised with each new ciphertext, and authenticated with it.
    Column("data_version", Integer, nullable=False, server_default="1"),
    Column("request_hash", LargeBinary),
    _now("created_at"),
    _now("updated_at"),
    _revision(),
    UniqueConstraint("project_id", "name"),
    Index("credentials_project_id_created_at_idx", "project_id", "created_at", "id"),
)
