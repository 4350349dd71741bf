"""Settings of workers."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.kit.settings import EnvironmentSettings


class Settings(EnvironmentSettings):
    """A worker. Environment prefix `HEADRACE_WORKER_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_WORKER_", extra="ignore")

    listen: str = Field(description="host:port of the gRPC health service.")
    metrics_listen: str = Field("", description="host:port of Prometheus metrics; empty = none.")
    slots: int = Field(64, ge=1, le=1024, description="Node executions under way at a time.")
    queues: str = Field("", description="Queues to serve, comma-separated; empty = all.")
    heartbeat_seconds: float = Field(0.4, ge=0.1, le=60, description="Pause between heartbeats; well under the lease.")
    stall_seconds: float = Field(
        10.0,
        ge=1,
        le=3600,
        description="An event loop that stands still for so long ends the process; above the lease.",
    )
    memory_bytes: int = Field(
        1024 * 1024 * 1024,
        ge=0,
        description="A worker that uses more finishes what it runs and ends; at 1.5 times that, at once. 0 = any.",
    )
    max_jobs: int = Field(
        0, ge=0, description="A worker that has done so many finishes what it runs and ends. 0 = any."
    )
    drain_seconds: float = Field(10.0, ge=0, le=3600, description="How long work under way may go on after SIGTERM.")


class PeerSettings(EnvironmentSettings):
    """Where the others are. Environment prefix `HEADRACE_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    nats_url: SecretStr = Field(description="URL of NATS, with a worker's rights.")
    auth_target: str = Field(description="gRPC target of the auth service.")
    executor_target: str = Field(description="gRPC target of the executor.")
    llm_target: str = Field(description="gRPC target of the LLM service.")
    vector_target: str = Field(description="gRPC target of the vector service.")
    egress_allow: str = Field("", description="host:port,… beyond public addresses that nodes may connect to.")
    egress_deny: str = Field("", description="host:port,… that nodes may never connect to: our own database.")
    egress_traceparent: bool = Field(
        False, description="Send `traceparent` with nodes' HTTP requests: the trace's id, to whoever they go to."
    )
