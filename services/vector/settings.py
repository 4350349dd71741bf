"""The vector service's settings. Environment prefix `HEADRACE_VECTOR_`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.kit.settings import EnvironmentSettings


class Settings(EnvironmentSettings):
    """How the service runs. The llm service is optional: without it, collections take and search vectors only."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_VECTOR_", extra="ignore", populate_by_name=True)

    listen: str = Field(description="host:port of the gRPC server.")
    metrics_listen: str = Field("", description="host:port for Prometheus text at /metrics; empty = off.")
    postgres_url: SecretStr = Field(description="postgresql:// URL with the service's own role.")
    postgres_connections: int = Field(8, gt=0, description="Connections to PostgreSQL.")
    index_dir: Path = Field(description="Folder of the index files; replicas on one machine may share it.")
    llm_target: str = Field("", alias="HEADRACE_LLM_TARGET", description="gRPC target of the llm service.")
    memory_bytes: int = Field(
        2 * 1024**3, gt=0, description="Indexes beyond this are dropped from memory, the least recently used first."
    )
    search_threads: int = Field(2, gt=0, le=64, description="Searches that compute at the same time.")
    snapshot_changes: int = Field(
        10_000,
        gt=0,
        description="An index is written to its file after so many changes, or 10% of its records if more.",
    )
    housekeeping_seconds: float = Field(
        60.0, gt=0, description="Pause between two rounds of removing what deleted collections left behind."
    )
    deletions_kept_seconds: float = Field(
        86_400.0, gt=0, description="How long deletions are listed; an index file that is older is built anew."
    )
