"""Settings that several services share. Each service's own are in its `settings.py`, under `HEADRACE_<SERVICE>_`."""

import base64
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommonSettings(BaseSettings):
    """How a process logs. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    log_format: Literal["json", "console"] = Field("json", description="One JSON object per line, or for a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")


class InternalKeySettings(BaseSettings):
    """The key under which services prove themselves to each other. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    internal_key: SecretStr = Field(description="At least 32 random bytes, base64. All services but workers hold it.")

    @field_validator("internal_key")
    @classmethod
    def _is_long_enough(cls, value: SecretStr) -> SecretStr:
        if len(decode_key(value)) < 32:
            raise ValueError("must be at least 32 bytes, base64-encoded; `openssl rand -base64 32` makes one")
        return value


def decode_key(value: SecretStr) -> bytes:
    """The bytes of a base64 secret. Raises ValueError when it is not base64."""
    return base64.b64decode(value.get_secret_value(), validate=True)
