"""`python -m deploy.docker.prepare`: makes the database and the services' roles, with an administrator's URL.

May be run again at any time: what exists is brought in line, changed passwords too.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from deploy.local.databases import prepare_database
from services.kit.settings import EnvironmentSettings


class Settings(EnvironmentSettings):
    """Whose database it is, and how each service will log in to it. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    postgres_url: SecretStr = Field(description="URL with a role that may make databases and roles.")
    auth_postgres_url: SecretStr = Field(description="URL of the database with the role to make; as below.")
    workflows_postgres_url: SecretStr
    executor_postgres_url: SecretStr
    vector_postgres_url: SecretStr


def main() -> None:
    """Make what the settings name."""
    settings = Settings()
    urls = [
        urlsplit(url.get_secret_value())
        for url in (
            settings.auth_postgres_url,
            settings.workflows_postgres_url,
            settings.executor_postgres_url,
            settings.vector_postgres_url,
        )
    ]
    roles = {unquote(url.username or ""): unquote(url.password or "") for url in urls}
    (database,) = {unquote(url.path[1:]) for url in urls}
    asyncio.run(prepare_database(settings.postgres_url.get_secret_value(), roles, database=database))


if __name__ == "__main__":
    main()
