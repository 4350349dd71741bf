"""Variables: named JSON values of a project, or of one run, that expressions read.

A run sees those of its project as they were when it was accepted, and keeps them. So that a start asks the database for
nothing, each executor knows by its census which projects have variables, and in which revision; their values it reads
once for each revision.
"""

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import orjson

from services.executor.engine.run_variables import NONE, JsonText
from services.kit import strict_json
from services.kit.errors import InvalidArgumentError, Violation

MAX_BYTES = 64 * 1024
"""All of a project, or of a run, as JSON."""
MAX_COUNT = 200
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_NAME_RULE = "Names are a lower-case letter and up to 63 more of a-z, 0-9, _ and -."
_CACHE_BYTES = 8 * 1024 * 1024
"""Texts of all projects together; parsed they take several times as much."""
_STALE_SECONDS = 5.0
"""Without a census for so long, a start asks for the revisions itself."""


class InvalidVariablesError(InvalidArgumentError):
    """Some of the variables cannot be set."""

    reason = "INVALID_VARIABLES"


def read_variables(data: bytes, path: str) -> bytes:
    """The JSON text to keep of variables from outside; `path` is where they stood. Raises InvalidVariablesError."""
    try:
        value = strict_json.loads(data, max_bytes=MAX_BYTES)
    except InvalidArgumentError as error:
        raise _invalid(
            [Violation(each.code, each.message, path + each.path.removeprefix("$")) for each in error.violations]
        ) from error
    problems = list(_problems(value, path))
    if problems:
        raise _invalid(problems)
    return orjson.dumps(value)


def _problems(value: Any, path: str) -> Iterator[Violation]:
    if not isinstance(value, dict):
        yield Violation("INVALID_TYPE", "Variables are a JSON object: values by name.", path)
        return
    if len(value) > MAX_COUNT:
        yield Violation("TOO_MANY", f"{len(value)} variables are over the limit of {MAX_COUNT}.", path)
        return
    for name in value:
        if not _NAME.fullmatch(name):
            message = f"{name[:64]!r} cannot be the name of a variable. {_NAME_RULE}"
            yield Violation("INVALID_NAME", message, f"{path}.{name[:64]}")


def _invalid(problems: list[Violation]) -> InvalidVariablesError:
    message = f"The variables are not valid. {problems[0].message}"
    return InvalidVariablesError(message, violations=tuple(problems))


class VariableStore(Protocol):
    """What is stored of projects' variables."""

    async def revisions(self) -> Mapping[str, int]:
        """Revisions by project, of those that ever had variables."""
        ...

    async def get_variables(self, project_id: UUID) -> tuple[int, bytes]:
        """Their revision, 0 when none were ever set, and their JSON text."""
        ...

    async def set_variables(self, project_id: UUID, text: bytes) -> int:
        """Replace them, durably; the new revision, which is higher than every one before."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    revision: int
    json: JsonText


class ProjectVariables:
    """Variables of projects: to be read and set, and those that runs accepted now are to see."""

    def __init__(self, store: VariableStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._stale_at = -math.inf
        self._revisions: dict[str, int] = {}
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._known_bytes = 0
        self._reading = asyncio.Lock()

    async def get(self, project_id: UUID) -> bytes:
        """JSON text of a project's variables."""
        _, text = await self._store.get_variables(project_id)
        return text

    async def set(self, project_id: UUID, data: bytes) -> bytes:
        """Replace them; JSON text of what is kept. Raises InvalidVariablesError with all that is wrong.

        Runs that are accepted here from now on see it; those that other executors accept, from their next census on.
        """
        text = read_variables(data, "variables")
        revision = await self._store.set_variables(project_id, text)
        self._revisions[str(project_id)] = revision
        self._remember(project_id, _Known(revision, _json(text)))
        return text

    def configure(self, revisions: Mapping[str, int]) -> None:
        """Take over what the census has found: revisions by project. Projects are never taken out again."""
        self._revisions.update(revisions)
        self._stale_at = self._clock() + _STALE_SECONDS

    async def pinned(self, project_id: UUID) -> JsonText:
        """What a run that is accepted now is to see as long as it lives."""
        if self._clock() > self._stale_at:
            await self._catch_up()
        revision = self._revisions.get(str(project_id))
        if revision is None:
            return NONE
        return (self._current(project_id, revision) or await self._read(project_id, revision)).json

    async def _catch_up(self) -> None:
        async with self._reading:
            if self._clock() > self._stale_at:
                self.configure(await self._store.revisions())

    def _current(self, project_id: UUID, revision: int) -> _Known | None:
        known = self._known.get(project_id)
        if known is None or known.revision < revision:
            return None
        self._known.move_to_end(project_id)
        return known

    async def _read(self, project_id: UUID, at_least: int) -> _Known:
        async with self._reading:
            known = self._current(project_id, at_least)
            if known is None:
                revision, text = await self._store.get_variables(project_id)
                known = _Known(revision, _json(text))
                self._remember(project_id, known)
        return known

    def _remember(self, project_id: UUID, known: _Known) -> None:
        present = self._known.pop(project_id, None)
        if present is not None:
            self._known_bytes -= len(present.json.text)
            known = max(known, present, key=lambda each: each.revision)
        self._known[project_id] = known
        self._known_bytes += len(known.json.text)
        while self._known_bytes > _CACHE_BYTES:
            _, dropped = self._known.popitem(last=False)
            self._known_bytes -= len(dropped.json.text)


def _json(text: bytes) -> JsonText:
    return NONE if text == NONE.text else JsonText(text)
