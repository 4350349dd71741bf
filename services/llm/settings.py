"""Settings of the model service: its own, and the models that an operator names."""

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.kit.settings import EnvironmentSettings
from services.llm.domain.model import Prices

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDING_MODEL = "all-minilm-l6-v2"

Task = Literal["generate", "embed", "both"]


class LlmSettings(EnvironmentSettings):
    """Environment prefix `HEADRACE_LLM_`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_LLM_", extra="ignore", hide_input_in_errors=True)

    listen: str = Field(description="host:port of the gRPC server.")
    metrics_listen: str = Field("", description="host:port for Prometheus metrics at /metrics; empty = off.")
    models: SecretStr = Field(SecretStr(""), description="JSON list of models; see `ModelList`. It may hold API keys.")
    models_file: Path | None = Field(None, description="File with that list instead.")
    defaults: Literal["on", "off"] = Field(
        "on", description="`on` offers the small models that come with Headrace where no model of their kind is named."
    )
    default_gguf: Path | None = Field(None, description="GGUF file of the model that comes with Headrace.")
    default_embedding_dir: Path | None = Field(None, description="Folder of the embedding model that comes with it.")
    preload: bool = Field(False, description="Load models at start rather than when they are first called.")
    threads: int = Field(2, ge=1, le=512, description="CPU threads for each model that is loaded here.")
    max_tokens: int = Field(4096, ge=1, description="Most tokens of one answer, whatever the caller asks for.")
    max_prompt_bytes: int = Field(2 * 1024 * 1024, ge=1, description="Largest prompt, as UTF-8.")
    check_seconds: float = Field(15.0, gt=0, description="Seconds between two health checks of the models.")
    stop_seconds: float = Field(20.0, ge=0, description="Seconds that answers under way get at a stop.")

    @model_validator(mode="after")
    def _names_models_once(self) -> "LlmSettings":
        if self.models_file is not None:
            if self.models.get_secret_value():
                raise ValueError("set HEADRACE_LLM_MODELS or HEADRACE_LLM_MODELS_FILE, not both")
            if not self.models_file.is_file():
                raise ValueError(f"HEADRACE_LLM_MODELS_FILE names {self.models_file}, which is no file")
        return self


class _ModelSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=200, description="Name by which callers know it; case-sensitive.")
    default: bool = Field(False, description="The one used when a call names none; else the first of its kind is.")
    context_length: int = Field(0, ge=0, le=16_777_216, description="Tokens of prompt plus answer; 0 = as it tells.")
    max_concurrency: int = Field(64, ge=1, le=4096, description="Calls under way at once.")
    max_queue: int = Field(256, ge=0, le=100_000, description="Calls that may wait; more are refused.")
    price_per_million_input_tokens: float | None = Field(
        None, ge=0, description="What a million tokens read cost, in any currency: for the metric of what was spent."
    )
    price_per_million_output_tokens: float | None = Field(None, ge=0, description="The same of tokens written.")

    @field_validator("name")
    @classmethod
    def _is_no_workflow(cls, value: str) -> str:
        if value.startswith("workflow/"):
            raise ValueError("must not begin with 'workflow/': the API gives such names to workflows")
        return value


class _RemoteSettings(_ModelSettings):
    base_url: str = Field("", description="Address of the server, with /v1 where it has that.")
    replicas: tuple[str, ...] = Field((), description="Addresses of several servers of the same model.")
    api_key: SecretStr = Field(SecretStr(""), description="Sent as a bearer token.")
    extra: dict[str, Any] = Field(default_factory=dict, description="Merged into the body of each generation.")
    silence_seconds: float = Field(120.0, gt=0, description="Longest time without a byte from the server.")

    @model_validator(mode="after")
    def _has_an_address(self) -> "_RemoteSettings":
        if not self.base_urls:
            raise ValueError("`base_url` or `replicas` is needed: the address of the server")
        for url in self.base_urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url[:100]!r} is no address: it must begin with http:// or https://")
        return self

    @property
    def base_urls(self) -> tuple[str, ...]:
        """All addresses once, without a slash at the end."""
        urls = [url.rstrip("/") for url in (self.base_url, *self.replicas) if url]
        return tuple(dict.fromkeys(urls))


class OpenAISettings(_RemoteSettings):
    """A server that speaks the OpenAI API: vLLM, SGLang, Ollama, OpenAI and others."""

    backend: Literal["openai"]
    model: str = Field("", description="Its name at the server; as `name` when absent.")
    task: Task = Field("generate", description="What it is for.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="`max_completion_tokens` for OpenAI's reasoning models."
    )
    embed_batch: int = Field(64, ge=1, le=2048, description="Texts in one embedding request.")


class TgiSettings(_RemoteSettings):
    """A server of Hugging Face's Text Generation Inference."""

    backend: Literal["tgi"]


class _LocalSettings(_ModelSettings):
    path: Path | None = Field(None, description="Where it is on this machine.")
    repo: str = Field("", description="Repository of the Hugging Face hub instead, such as `Qwen/Qwen3-4B-GGUF`.")
    revision: str | None = Field(None, description="Branch, tag or commit of the repository.")
    threads: int | None = Field(None, ge=1, le=512, description="CPU threads; else HEADRACE_LLM_THREADS.")

    @model_validator(mode="after")
    def _is_somewhere(self) -> "_LocalSettings":
        if (self.path is None) is not bool(self.repo):
            raise ValueError("one of `path` and `repo` is needed, not both")
        return self


class LlamaCppSettings(_LocalSettings):
    """A GGUF file run by this service with llama.cpp."""

    backend: Literal["llamacpp"]
    file: str | None = Field(None, description="The GGUF file in the repository.")
    task: Literal["generate", "embed"] = Field("generate", description="What it is for.")
    context_length: int = Field(4096, ge=128, le=16_777_216, description="Tokens of prompt plus answer.")
    parallel: int = Field(4, ge=1, le=256, description="Answers computed together; each needs memory for its context.")
    max_concurrency: int = Field(16, ge=1, le=4096, description="Calls under way at once; those past `parallel` wait.")

    @model_validator(mode="after")
    def _names_its_file(self) -> "LlamaCppSettings":
        if self.repo and not self.file:
            raise ValueError("`file` is needed beside `repo`: the name of the GGUF file in it")
        return self


class SentenceTransformersSettings(_LocalSettings):
    """An embedding model loaded by this service with sentence-transformers."""

    backend: Literal["sentence_transformers"]


ModelSettings = Annotated[
    OpenAISettings | TgiSettings | LlamaCppSettings | SentenceTransformersSettings, Field(discriminator="backend")
]


def prices(model: ModelSettings) -> Prices | None:
    """What it costs; None where neither price is named."""
    read, written = model.price_per_million_input_tokens, model.price_per_million_output_tokens
    return None if read is None and written is None else Prices(read or 0.0, written or 0.0)


def generates(model: ModelSettings) -> bool:
    """Whether it writes text."""
    if isinstance(model, OpenAISettings | LlamaCppSettings):
        return model.task in ("generate", "both")
    return isinstance(model, TgiSettings)


def embeds(model: ModelSettings) -> bool:
    """Whether it gives vectors."""
    if isinstance(model, OpenAISettings | LlamaCppSettings):
        return model.task in ("embed", "both")
    return isinstance(model, SentenceTransformersSettings)


class ModelList(BaseModel):
    """The list in HEADRACE_LLM_MODELS or its file, with what its entries must agree on."""

    model_config = ConfigDict(title="HEADRACE_LLM_MODELS", hide_input_in_errors=True)

    models: tuple[ModelSettings, ...]

    @field_validator("models", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str | bytes):
            return value
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from error

    @model_validator(mode="after")
    def _agree(self) -> "ModelList":
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each name may stand once; more than once: {', '.join(twice)}")
        for word, able in (("write text", generates), ("embed text", embeds)):
            defaults = [model.name for model in self.models if model.default and able(model)]
            if len(defaults) > 1:
                raise ValueError(f"only one model that can {word} may be the default; there are {', '.join(defaults)}")
        return self


def configured_models(settings: LlmSettings) -> tuple[tuple[ModelSettings, ...], frozenset[str]]:
    """The models to offer, and the names of the defaults among them. Raises ValidationError that says what to change.

    The models that come with Headrace stand in where none of their kind is named.
    """
    text: str | bytes = settings.models.get_secret_value()
    if settings.models_file is not None:
        text = settings.models_file.read_bytes()
    models = list(ModelList.model_validate({"models": text}).models) if text else []
    if settings.defaults == "on":
        names = {model.name for model in models}
        models += [model for model in _built_in(settings) if model.name not in names]
    chosen = set()
    for able in (generates, embeds):
        candidates = [model for model in models if able(model)]
        chosen |= {model.name for model in ([m for m in candidates if m.default] or candidates)[:1]}
    return tuple(models), frozenset(chosen)


def _built_in(settings: LlmSettings) -> list[ModelSettings]:
    found: list[ModelSettings] = []
    if settings.default_gguf is not None:
        found.append(LlamaCppSettings(name=DEFAULT_MODEL, backend="llamacpp", path=settings.default_gguf))
    if settings.default_embedding_dir is not None:
        found.append(
            SentenceTransformersSettings(
                name=DEFAULT_EMBEDDING_MODEL, backend="sentence_transformers", path=settings.default_embedding_dir
            )
        )
    return found
