"""Settings that several services share. Each service's own are in its `settings.py`, under `HEADRACE_<SERVICE>_`."""

import base64
import os
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

SECRETS_DIR = "HEADRACE_SECRETS_DIR"


class EnvironmentSettings(BaseSettings):
    """Settings from the environment, and from files where HEADRACE_SECRETS_DIR names a folder.

    A file in it stands for the variable of its name; a variable that is set comes before its file. Secrets in files are
    not seen by who lists processes or inspects containers.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = SecretsSettingsSource(settings_cls, secrets_dir=os.environ.get(SECRETS_DIR))
        return init_settings, env_settings, files


class CommonSettings(EnvironmentSettings):
    """How a process logs. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    log_format: Literal["json", "console"] = Field("json", description="One JSON object per line, or for a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")


class InternalKeySettings(EnvironmentSettings):
    """The keys under which services prove themselves to each other. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    internal_key: SecretStr = Field(description="At least 32 random bytes, base64. All services but workers hold it.")
    previous_internal_keys: SecretStr = Field(
        SecretStr(""),
        description="Further ones, comma-separated, that are accepted beside it: the key before, or the one to come.",
    )

    @field_validator("internal_key")
    @classmethod
    def _is_long_enough(cls, value: SecretStr) -> SecretStr:
        if len(decode_key(value)) < 32:
            raise ValueError("must be at least 32 bytes, base64-encoded; `openssl rand -base64 32` makes one")
        return value

    @field_validator("previous_internal_keys")
    @classmethod
    def _are_long_enough(cls, value: SecretStr) -> SecretStr:
        if any(len(key) < 32 for key in decode_keys(value)):
            raise ValueError("must be keys of at least 32 bytes, base64-encoded, comma-separated")
        return value

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The present key, then those that are accepted beside it."""
        return (decode_key(self.internal_key), *decode_keys(self.previous_internal_keys))


def decode_key(value: SecretStr) -> bytes:
    """The bytes of a base64 secret. Raises ValueError when it is not base64."""
    return base64.b64decode(value.get_secret_value(), validate=True)


def decode_keys(value: SecretStr) -> tuple[bytes, ...]:
    """The bytes of comma-separated base64 secrets, none when it is empty. Raises ValueError as above."""
    parts = (part.strip() for part in value.get_secret_value().split(","))
    return tuple(base64.b64decode(part, validate=True) for part in parts if part)
