"""Settings of the executor and of workers."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The executor. Environment prefix `HEADRACE_EXECUTOR_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_EXECUTOR_", extra="ignore")

    listen: str = Field(description="host:port of the gRPC server.")
    metrics_listen: str = Field("", description="host:port of Prometheus metrics; empty = none.")
    postgres_url: SecretStr = Field(description="URL of the database with the executor's own role.")
    lanes: int = Field(2, ge=1, le=32, description="Commits under way at a time.")
    lease_seconds: float = Field(
        1.6, ge=0.5, le=300, description="A worker that is not heard for so long loses its jobs to others."
    )
    sweep_seconds: float = Field(0.25, ge=0.05, le=60, description="Pause between looks for what was left behind.")
    max_run_seconds: int = Field(
        30 * 24 * 3600, ge=1, le=366 * 24 * 3600, description="Longest time of a run whose definition names none."
    )
    retention_days: int = Field(
        30, ge=1, le=36500, description="Days that ended runs are kept, with all they did, where a project has no own."
    )
    max_run_output_bytes: int = Field(
        256 * 1024 * 1024, ge=1024 * 1024, description="Outputs of all nodes of a run together."
    )
    max_run_events: int = Field(1_000_000, ge=100, description="Events of a run, after which it starts no more nodes.")


class PeerSettings(BaseSettings):
    """Where the others are. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    nats_url: SecretStr = Field(description="URL of NATS with JetStream.")
    workflows_target: str = Field(description="gRPC target of the workflows service.")
