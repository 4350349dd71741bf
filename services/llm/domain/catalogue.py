"""The configured models: found by name, listed, and checked in the background."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from services.kit.errors import DomainError
from services.llm.domain.backend import Backend
from services.llm.domain.errors import ModelNotFoundError
from services.llm.domain.limits import Admission, SizeLimits
from services.llm.domain.model import ModelInfo, Prices

log = structlog.get_logger(__name__)

_CHECK_TIMEOUT = 3.0
_AVAILABLE = Gauge("headrace_llm_model_available", "1 while the model's backend answers, else 0.", ["model"])


@dataclass(frozen=True, slots=True)
class Model:
    """A model by the name that callers use, with what runs it and what bounds it."""

    name: str
    backend: Backend
    generates: bool
    embeds: bool
    admission: Admission
    sizes: SizeLimits
    is_default: bool = False
    prices: Prices | None = None
    """None = not known."""


class Catalogue:
    """All models of this process. Names are unique and case-sensitive; at most one default per ability."""

    def __init__(self, models: Sequence[Model], *, check_interval: float) -> None:
        """`check_interval` in seconds, between two rounds of health checks."""
        self._models = {model.name: model for model in models}
        self._check_interval = check_interval
        self._available: dict[str, bool] = {}
        self._first_round = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def generator(self, name: str) -> Model:
        """The model that writes; the default for an empty name. Raises ModelNotFoundError."""
        return self._find(name, [model for model in self._models.values() if model.generates], "write text")

    def embedder(self, name: str) -> Model:
        """The model that embeds; the default for an empty name. Raises ModelNotFoundError."""
        return self._find(name, [model for model in self._models.values() if model.embeds], "embed text")

    def any(self, name: str) -> Model:
        """A model of any ability; the default for writing for an empty name. Raises ModelNotFoundError."""
        return self._models[name] if name in self._models else self.generator(name)

    async def list(self) -> list[ModelInfo]:
        """All models by name. Waits for the first round of checks when it has not ended yet."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first_round.wait(), _CHECK_TIMEOUT + 1)
        return [
            ModelInfo(
                name=model.name,
                backend=model.backend.kind,
                generates=model.generates,
                embeds=model.embeds,
                dimension=model.backend.dimension if model.embeds else 0,
                context_length=model.backend.context_length,
                available=self._available.get(model.name, False),
                is_default=model.is_default,
            )
            for model in sorted(self._models.values(), key=lambda model: model.name)
        ]

    def start(self, *, preload: bool) -> None:
        """Begin the health checks, and with `preload` the loading of models, both in the background."""
        self._tasks.append(asyncio.create_task(self._check_for_ever()))
        if preload:
            self._tasks += [asyncio.create_task(self._preload(model)) for model in self._models.values()]

    async def close(self) -> None:
        """Stop the background work and close all backends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(model.backend.close() for model in self._models.values()))

    def _find(self, name: str, able: "Sequence[Model]", ability: str) -> Model:
        for model in able:
            if model.name == name or (not name and model.is_default):
                return model
        raise ModelNotFoundError(name, existing=(model.name for model in able), ability=ability)

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.gather(*(self._check(model) for model in self._models.values()))
            self._first_round.set()
            await asyncio.sleep(self._check_interval)

    async def _check(self, model: Model) -> None:
        try:
            available = await asyncio.wait_for(model.backend.check(), _CHECK_TIMEOUT)
        except (DomainError, OSError, TimeoutError):
            available = False
        if self._available.get(model.name) is not available:
            log.info("model_availability_changed", model=model.name, available=available)
        self._available[model.name] = available
        _AVAILABLE.labels(model.name).set(available)

    async def _preload(self, model: Model) -> None:
        try:
            await model.backend.load()
        except DomainError as error:
            # The first call tries again and tells its caller.
            log.warning("model_preload_failed", model=model.name, reason=error.reason, message=error.message)
