"""Settings of the executor and of workers."""

from collections.abc import Sequence

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.executor.domain.admission import AdmissionLimits
from services.executor.domain.refill import RefillSettings
from services.kit.settings import EnvironmentSettings


class Settings(EnvironmentSettings):
    """The executor. Environment prefix `HEADRACE_EXECUTOR_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_EXECUTOR_", extra="ignore")

    listen: str = Field(description="host:port of the gRPC server.")
    metrics_listen: str = Field("", description="host:port of Prometheus metrics; empty = none.")
    postgres_url: SecretStr = Field(description="URL of the database with the executor's own role.")
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
    window_per_slot: float = Field(
        1.0, ge=0.1, le=16, description="Wake-ups published and not yet claimed, for each slot that workers have."
    )
    max_open_runs: int = Field(100_000, ge=1, description="Open runs that a project may have; more are answered 429.")
    max_queued_nodes: int = Field(
        500_000, ge=1, description="Nodes of a project that may wait for a worker before new runs are answered 429."
    )
    shed_after_seconds: float = Field(
        30.0, ge=1, le=3600, description="New runs are answered 429 when workers leave a wake-up unclaimed for so long."
    )
    max_commit_queue: int = Field(
        5_000, ge=100, description="New runs are answered 429 when so many transitions wait for a commit."
    )

    @property
    def admission(self) -> AdmissionLimits:
        """When new runs are refused."""
        return AdmissionLimits(
            self.max_open_runs, self.max_queued_nodes, self.shed_after_seconds, self.max_commit_queue
        )

    def refill(self, executor_id: str, queues: Sequence[str]) -> RefillSettings:
        """How the window is refilled by an executor that serves these queues."""
        return RefillSettings(executor_id, tuple(queues), self.sweep_seconds, self.window_per_slot)


class PeerSettings(EnvironmentSettings):
    """Where the others are. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    nats_url: SecretStr = Field(description="URL of NATS with JetStream.")
    workflows_target: str = Field(description="gRPC target of the workflows service.")
