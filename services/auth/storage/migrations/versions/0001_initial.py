"""Users, projects, sessions, API keys and credentials."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; `services/auth/storage/tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    """
    CREATE TABLE auth.projects (
        id uuid CONSTRAINT projects_pkey PRIMARY KEY,
        name text NOT NULL,
        personal_user_id uuid CONSTRAINT projects_personal_user_id_key UNIQUE,
        request_hash bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        revision bigint NOT NULL DEFAULT 1
    )
    """,
    """
    CREATE TABLE auth.users (
        id uuid CONSTRAINT users_pkey PRIMARY KEY,
        email text NOT NULL CONSTRAINT users_email_key UNIQUE,
        name text NOT NULL,
        password_hash text NOT NULL,
        personal_project_id uuid NOT NULL CONSTRAINT users_personal_project_id_fkey REFERENCES auth.projects (id),
        request_hash bytea,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE auth.memberships (
        project_id uuid CONSTRAINT memberships_project_id_fkey REFERENCES auth.projects (id) ON DELETE CASCADE,
        user_id uuid CONSTRAINT memberships_user_id_fkey REFERENCES auth.users (id) ON DELETE CASCADE,
        role smallint NOT NULL CONSTRAINT memberships_role_check CHECK (role BETWEEN 1 AND 4),
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT memberships_pkey PRIMARY KEY (project_id, user_id)
    )
    """,
    "CREATE INDEX memberships_user_id_idx ON auth.memberships (user_id)",
    """
    CREATE TABLE auth.refresh_families (
        id uuid CONSTRAINT refresh_families_pkey PRIMARY KEY,
        user_id uuid NOT NULL CONSTRAINT refresh_families_user_id_fkey REFERENCES auth.users (id) ON DELETE CASCADE,
        seed bytea NOT NULL,
        counter integer NOT NULL DEFAULT 1,
        created_at timestamptz NOT NULL DEFAULT now(),
        rotated_at timestamptz NOT NULL DEFAULT now(),
        idle_expires_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        revoked_at timestamptz
    )
    """,
    "CREATE INDEX refresh_families_user_id_expires_at_idx ON auth.refresh_families (user_id, expires_at)",
    """
    CREATE TABLE auth.login_throttles (
        key bytea CONSTRAINT login_throttles_pkey PRIMARY KEY,
        busy_until timestamptz NOT NULL
    )
    """,
    "CREATE INDEX login_throttles_busy_until_idx ON auth.login_throttles (busy_until)",
    """
    CREATE TABLE auth.api_keys (
        id uuid CONSTRAINT api_keys_pkey PRIMARY KEY,
        project_id uuid NOT NULL CONSTRAINT api_keys_project_id_fkey REFERENCES auth.projects (id) ON DELETE CASCADE,
        user_id uuid NOT NULL CONSTRAINT api_keys_user_id_fkey REFERENCES auth.users (id) ON DELETE CASCADE,
        name text NOT NULL,
        prefix text NOT NULL,
        seed bytea NOT NULL,
        secret_hash bytea NOT NULL CONSTRAINT api_keys_secret_hash_key UNIQUE,
        scopes text[] NOT NULL,
        request_hash bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        last_used_at timestamptz
    )
    """,
    """
    CREATE INDEX api_keys_project_id_user_id_created_at_idx
        ON auth.api_keys (project_id, user_id, created_at, id)
    """,
    """
    CREATE TABLE auth.data_keys (
        project_id uuid CONSTRAINT data_keys_pkey PRIMARY KEY
            CONSTRAINT data_keys_project_id_fkey REFERENCES auth.projects (id) ON DELETE CASCADE,
        wrapped_by text NOT NULL,
        wrapped_key bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE auth.credentials (
        id uuid CONSTRAINT credentials_pkey PRIMARY KEY,
        project_id uuid NOT NULL CONSTRAINT credentials_project_id_fkey REFERENCES auth.projects (id) ON DELETE CASCADE,
        name text NOT NULL,
        type text NOT NULL,
        ciphertext bytea NOT NULL,
        data_version integer NOT NULL DEFAULT 1,
        request_hash bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        revision bigint NOT NULL DEFAULT 1,
        CONSTRAINT credentials_project_id_name_key UNIQUE (project_id, name)
    )
    """,
    "CREATE INDEX credentials_project_id_created_at_idx ON auth.credentials (project_id, created_at, id)",
)
