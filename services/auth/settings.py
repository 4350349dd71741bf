"""What auth reads from the environment, prefix `HEADRACE_AUTH_`."""

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.auth.domain.tokens import load_public_keys, load_signing_key
from services.kit.settings import EnvironmentSettings, decode_key, decode_keys


class DatabaseSettings(EnvironmentSettings):
    """All that `migrate` needs."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_AUTH_", extra="ignore")

    postgres_url: SecretStr = Field(description="postgresql:// URL with the role that owns the schema `auth`.")


class Settings(DatabaseSettings):
    """All that `serve` needs. Secrets have no default."""

    listen: str = Field(description="host:port of the gRPC server.")
    metrics_listen: str = Field("", description="host:port of /metrics; empty = off.")
    signing_key: SecretStr = Field(description="Ed25519 private key (PEM) that signs access tokens.")
    previous_public_keys: str = Field(
        "",
        description="Ed25519 public keys (PEM, one after the other) that are published beside the signing key's: "
        "the one before it, until its tokens have expired (15 min), or the next one.",
    )
    pepper: SecretStr = Field(
        description="32 bytes, base64: keys the hashes of passwords and makes refresh tokens and API keys. "
        "There is no changing it: passwords and tokens made under another no longer count."
    )
    credential_key: SecretStr = Field(description="32 bytes, base64: encrypts the keys that encrypt credentials.")
    previous_credential_keys: SecretStr = Field(
        SecretStr(""),
        description="Earlier credential keys, comma-separated, that still open what they encrypted.",
    )
    bcrypt_cost: int = Field(
        12, ge=4, le=15, description="log2 of bcrypt's rounds; less than 10 is for tests, which hash all the time."
    )
    issuer: str = Field("headrace", description="`iss` of access tokens.")
    audience: str = Field("headrace", description="`aud` of access tokens.")

    @field_validator("signing_key")
    @classmethod
    def _is_signing_key(cls, value: SecretStr) -> SecretStr:
        try:
            load_signing_key(value.get_secret_value().encode())
        except Exception as error:
            raise ValueError(f"is not an Ed25519 private key in PEM: {error}") from error
        return value

    @field_validator("previous_public_keys")
    @classmethod
    def _are_public_keys(cls, value: str) -> str:
        load_public_keys(value.encode())
        return value

    @field_validator("pepper", "credential_key")
    @classmethod
    def _is_32_bytes(cls, value: SecretStr) -> SecretStr:
        if len(decode_key(value)) != 32:
            raise ValueError("must be 32 bytes, base64-encoded; `openssl rand -base64 32` makes one")
        return value

    @field_validator("previous_credential_keys")
    @classmethod
    def _are_32_bytes(cls, value: SecretStr) -> SecretStr:
        if any(len(key) != 32 for key in decode_keys(value)):
            raise ValueError("must be keys of 32 bytes, base64-encoded, comma-separated")
        return value
