"""Settings of the gateway. Environment prefix `HEADRACE_GATEWAY_`, but for the addresses of the other services."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import EnvironmentSettings

MIB = 1024 * 1024


class Settings(EnvironmentSettings):
    """How the gateway listens and what it lets through."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_GATEWAY_", extra="ignore")

    listen: str = Field("127.0.0.1:8080", description="host:port of the REST API.")
    metrics_listen: str = Field("", description="host:port of Prometheus metrics; empty = off.")
    docs: Literal["on", "off"] = Field("on", description="Serve /docs and /openapi.json. Turn off in production.")
    cors_origins: list[str] = Field(
        default_factory=list,
        description="JSON list of the origins whose pages may call the API; empty = none but its own.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="Number of proxies in front that append to X-Forwarded-For. 0 = the header is not believed.",
    )
    access_log: bool = Field(True, description="Log each request at level info.")

    token_issuer: str = Field("headrace", description="`iss` of access tokens, as HEADRACE_AUTH_ISSUER.")
    token_audience: str = Field("headrace", description="`aud` of access tokens, as HEADRACE_AUTH_AUDIENCE.")

    max_body_bytes: int = Field(MIB, gt=0, description="Largest request body.")
    max_large_body_bytes: int = Field(
        8 * MIB, gt=0, description="Largest request body that holds a definition or records."
    )
    max_header_bytes: int = Field(64 * 1024, gt=0, description="Largest request line with all headers.")
    max_requests: int = Field(1000, gt=0, description="Requests under way at once; beyond, the answer is 503.")
    max_connections: int = Field(10_000, gt=0, description="Open connections; beyond, the answer is 503.")
    header_timeout_seconds: float = Field(10.0, gt=0, description="Longest time a request's headers may take.")
    body_timeout_seconds: float = Field(30.0, gt=0, description="Longest time between two pieces of a request's body.")
    keep_alive_seconds: int = Field(75, gt=0, description="How long an idle connection stays open.")
    stop_timeout_seconds: int = Field(20, gt=0, description="How long requests under way may take after SIGTERM.")

    rpc_timeout_seconds: float = Field(10.0, gt=0, description="Longest time a service may take to answer.")
    upload_timeout_seconds: float = Field(120.0, gt=0, description="The same where records are embedded and stored.")
    model_timeout_seconds: float = Field(600.0, gt=0, description="The same for language models.")
    heartbeat_seconds: float = Field(15.0, gt=0, description="Event streams send a comment when quiet for this long.")


class TargetSettings(EnvironmentSettings):
    """gRPC addresses of the services: `host:port`, `dns:///name:port` or `ipv4:a:port,b:port`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    auth_target: str = Field(description="The auth service.")
    workflows_target: str = Field(description="The workflows service.")
    executor_target: str = Field(description="The executor.")
    llm_target: str = Field(description="The llm service.")
    vector_target: str = Field(description="The vector service.")
