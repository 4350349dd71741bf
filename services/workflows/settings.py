"""Settings of the workflows service. Environment prefix `HEADRACE_WORKFLOWS_`."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.kit.settings import EnvironmentSettings


class Settings(EnvironmentSettings):
    """Where the service listens and what it keeps its state in."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_WORKFLOWS_", extra="ignore")

    listen: str = Field(description="`host:port` of the gRPC server.")
    metrics_listen: str = Field("", description="`host:port` for Prometheus text at /metrics; empty = off.")
    postgres_url: SecretStr = Field(description="postgresql:// URL with the role of this service.")
    pool_size: int = Field(8, gt=0, le=100, description="Connections to PostgreSQL for changes and lists.")
    resolve_pool_size: int = Field(
        4, gt=0, le=100, description="Connections to PostgreSQL for reads of one workflow or version."
    )


class ExecutorSettings(EnvironmentSettings):
    """Where the catalogue of node types is read. Environment prefix `HEADRACE_EXECUTOR_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_EXECUTOR_", extra="ignore")

    target: str = Field(description="gRPC target of the executor, all its replicas.")
