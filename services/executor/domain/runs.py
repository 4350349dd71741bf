"""What people do with runs: start, wait, read, follow, cancel."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from uuid import UUID

import orjson

from services.executor.domain.admission import Admission
from services.executor.domain.committer import Committer, RunExistsError
from services.executor.domain.model import (
    EffectsWouldRepeatError,
    EventView,
    InputTooLargeError,
    InvalidPriorityError,
    NewRun,
    RerunAsk,
    RunNotEndedError,
    RunNotFoundError,
    RunView,
    Version,
    VersionSelector,
)
from services.executor.domain.run_states import Earlier, RunStates
from services.executor.domain.store import RunStore
from services.executor.domain.turns import concurrency_key
from services.executor.domain.variables import ProjectVariables, read_variables
from services.executor.domain.versions import Versions
from services.executor.domain.watchers import Token, Watch
from services.executor.engine import decide, rerun
from services.executor.engine.run_variables import NONE, JsonText, RunVariables
from services.executor.engine.state import RUN_TERMINAL, Limits, Linked, RunState
from services.kit.errors import DomainError, InvalidArgumentError, Violation
from services.kit.ids import id_for_create, known_id, request_hash, require_same_request

MAX_INPUT_BYTES = 1024 * 1024
MAX_PRIORITY = 100
_EVENT_PAGE = 500
_ATTEMPT_ENDS = frozenset(
    {"node.succeeded", "node.failed", "node.retrying", "node.requeued", "node.unknown", "node.cancelled"}
)
_PATIENCE_SECONDS = 0.05
"""How long the first commit of a run may wait for results, where its caller waits for the end anyway."""
_POLL_SECONDS = 1.0
"""How often a watcher looks by itself, in case a notice was lost."""

WatchHere = Callable[[UUID], AbstractContextManager[Watch]]
"""Watches a run in this process only: enough for a caller who also looks once a second."""
WatchEverywhere = Callable[[UUID], AbstractAsyncContextManager[Watch]]
"""Watches a run whichever executor moves it, tokens included."""


class Runs:
    """Use cases of runs. Every method takes the caller's project; a run of another one is RunNotFoundError."""

    def __init__(
        self,
        store: RunStore,
        versions: Versions,
        run_states: RunStates,
        committer: Committer,
        admission: Admission,
        *,
        variables: ProjectVariables,
        watch_here: WatchHere,
        watch_everywhere: WatchEverywhere,
        max_run_seconds: int,
    ) -> None:
        self._store = store
        self._versions = versions
        self._run_states = run_states
        self._committer = committer
        self._admission = admission
        self._variables = variables
        self._watch_here = watch_here
        self._watch_everywhere = watch_everywhere
        self._max_run_seconds = max_run_seconds

    async def start(
        self,
        project_id: UUID,
        workflow_id: UUID,
        selector: VersionSelector,
        *,
        input_json: bytes,
        request_id: str,
        started_by: UUID | None,
        traceparent: str,
        priority: int = 0,
        vars_json: bytes = b"",
        wait_seconds: float = 0.0,
    ) -> RunView:
        """Accept a run and return it, committed; with `wait_seconds`, as it stands at its end or when the time is up.

        With a `request_id` the run is accepted once however often this is called; with other content under the same id
        it raises IdempotencyKeyReusedError. Raises InputTooLargeError, InvalidPriorityError, InvalidVariablesError,
        ResourceExhaustedError when the project has too much under way or the system is behind, and what the workflows
        service raises.
        """
        if abs(priority) > MAX_PRIORITY:
            raise InvalidPriorityError(priority)
        _check_input(input_json)
        own = _variables(vars_json)
        content = request_hash(
            str(workflow_id),
            repr(selector),
            input_json,
            # Only where they are given, so that older hashes stay true; no number is an object.
            *([str(priority)] if priority else []),
            *([own.text] if own is not NONE else []),
        )
        run_id = id_for_create(project_id, "run", request_id)
        try:
            await self._admission.require(str(project_id))
            version = await self._versions.resolve(project_id, workflow_id, selector)
            links = await self._versions.links(version)
            key = concurrency_key(version.graph.limits, input_json)
            variables = RunVariables(own, await self._variables.pinned(project_id))
        except DomainError:
            # Too much may be under way, the workflow be gone or broken by now: what was accepted before is still the
            # answer to a repetition.
            present = await self._find(project_id, run_id) if request_id else None
            if present is None:
                raise
            require_same_request(present.request_hash, content)
            return present
        new = NewRun(
            workflow_name=version.workflow_name,
            request_hash=content if request_id else None,
            started_by=started_by,
            timeout_seconds=self._timeout(version),
            concurrency_key=key,
        )

        def make() -> RunState:
            return _new_state(
                run_id,
                version,
                input_json,
                traceparent,
                links=links,
                variables=variables,
                limits=self._run_states.limits,
                priority=priority,
            )

        with self._watch_here(run_id) as watch:
            patience = min(wait_seconds, _PATIENCE_SECONDS)
            view, is_repetition = await self._accept(project_id, run_id, new, make, content, patience=patience)
            if wait_seconds <= 0:
                return view
            if is_repetition:
                watch.ended.set()  # it may have ended long ago: look at once
            return await self._wait(project_id, run_id, watch, wait_seconds, new)

    async def rerun(
        self,
        project_id: UUID,
        run_id: UUID,
        ask: RerunAsk,
        *,
        request_id: str,
        started_by: UUID | None,
        traceparent: str,
    ) -> RunView:
        """Accept a run that goes again over one that has ended, and return it, committed.

        Raises RunNotFoundError, RunNotEndedError, InvalidArgumentError for places that are not there,
        EffectsWouldRepeatError with each effect that would happen again unless `ask.confirm`, and what `start` raises.
        """
        given = None if ask.vars_json is None else _variables(ask.vars_json)
        before = await self._store.get_run(project_id, run_id)
        content = request_hash("rerun", str(run_id), ask.content())
        new_id = id_for_create(project_id, "run", request_id)
        present = await self._find(project_id, new_id) if request_id else None
        if present is not None:
            require_same_request(present.request_hash, content)
            return present
        if before.status not in RUN_TERMINAL:
            raise RunNotEndedError(run_id)
        await self._admission.require(str(project_id))
        earlier = await self._run_states.earlier(run_id)
        version, links = earlier.version, dict(earlier.links)
        if ask.selector is not None:
            version = await self._versions.resolve(project_id, before.workflow_id, ask.selector)
            links = await self._versions.links(version)
        input_json = earlier.run.input if ask.input_json is None else ask.input_json
        _check_input(input_json)
        variables = earlier.run.vars if given is None else replace(earlier.run.vars, run=given)
        again = rerun.Again(
            ask.start,
            ask.overrides,
            input_changed=input_json != earlier.run.input,
            vars_changed=variables.run.value != earlier.run.vars.run.value,
        )
        _check_places(again, earlier, version)
        plan = earlier.plan(version, links, again)
        if plan.repeated and not ask.confirm:
            raise EffectsWouldRepeatError(plan.repeated)
        new = NewRun(
            workflow_name=version.workflow_name,
            request_hash=content if request_id else None,
            started_by=started_by,
            timeout_seconds=self._timeout(version),
            rerun_of=run_id,
            rerun=orjson.dumps(again.as_json()),
            concurrency_key=concurrency_key(version.graph.limits, input_json),
        )

        def make() -> RunState:
            state = _new_state(
                new_id,
                version,
                input_json,
                traceparent,
                links=links,
                variables=variables,
                limits=self._run_states.limits,
                priority=earlier.run.priority,
            )
            state.recorded = plan.recorded
            return state

        try:
            view, _ = await self._accept(project_id, new_id, new, make, content)
        except RunNotFoundError as error:
            # Refused, and not because it exists: the earlier run was removed for its age meanwhile.
            raise RunNotFoundError(run_id) from error
        return view

    def _timeout(self, version: Version) -> int:
        return max(1, round(min(version.graph.timeout or self._max_run_seconds, self._max_run_seconds)))

    async def _accept(
        self,
        project_id: UUID,
        run_id: UUID,
        new: NewRun,
        make: Callable[[], RunState],
        content: bytes,
        *,
        patience: float = 0.0,
    ) -> tuple[RunView, bool]:
        """Commit a new run; True with it when a repetition found it there. Raises IdempotencyKeyReusedError."""
        try:
            begin = decide.start if new.concurrency_key is None else decide.hold
            view = await self._committer.submit_new(
                run_id, new, make, begin, lambda state, _: _view(state, new), patience=patience
            )
        except RunExistsError:
            present = await self._store.get_run(project_id, run_id)
            require_same_request(present.request_hash, content)
            return present, True
        self._admission.accepted(str(project_id))
        return view, False

    async def _find(self, project_id: UUID, run_id: UUID) -> RunView | None:
        try:
            return await self._store.get_run(project_id, run_id)
        except RunNotFoundError:
            return None

    async def _wait(self, project_id: UUID, run_id: UUID, watch: Watch, seconds: float, new: NewRun) -> RunView:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            await _signalled(watch.ended, min(deadline - loop.time(), _POLL_SECONDS))
            if watch.last is not None:
                return _view(watch.last, new)
            watch.ended.clear()
            run = await self._store.get_run(project_id, run_id)
            if run.status in RUN_TERMINAL or loop.time() >= deadline:
                return run

    async def get(self, project_id: UUID, run_id: UUID) -> RunView:
        """A run with input and output."""
        return await self._store.get_run(project_id, run_id)

    async def cancel(self, project_id: UUID, run_id: UUID) -> RunView:
        """End a run. Idempotent; a run that has ended stays as it is."""
        await self._store.get_run(project_id, run_id)
        await self._committer.submit(run_id, decide.cancel, lambda _, __: None)
        return await self._store.get_run(project_id, run_id)

    async def follow(self, project_id: UUID, run_id: UUID, after: int) -> AsyncIterator[list[EventView | bytes]]:
        """Numbered events after `after`, then live ones and serialised tokens, until the run's last event.

        They come in lists of what has happened since the last. Nothing is left out and nothing comes twice, whichever
        executor moves the run. Tokens come only live, between the start of their node's attempt and its end.
        """
        async with self._watch_everywhere(run_id) as watch:
            late: list[Token] = []
            while True:
                watch.moved.clear()
                # Tokens that are here before the run is read belong to nodes whose start is then in its events.
                tokens, late = late + watch.take_tokens(), []
                page = await self._store.list_events(project_id, run_id, after=after, limit=_EVENT_PAGE)
                happened: list[EventView | bytes] = []
                for event in page.events:
                    after = event.sequence
                    if event.type in _ATTEMPT_ENDS:
                        late += watch.take_tokens()
                        place = event.item_path, event.node_key
                        happened += [token.data for token in [*tokens, *late] if token.place == place]
                        tokens = [token for token in tokens if token.place != place]
                        late = [token for token in late if token.place != place]
                    happened.append(event)
                is_whole = after >= page.last
                if is_whole:
                    happened += [token.data for token in tokens]
                else:
                    late = tokens + late
                if happened:
                    yield happened
                if is_whole and page.is_terminal:
                    return
                if is_whole and not late:
                    await _signalled(watch.moved, _POLL_SECONDS)


def _check_input(input_json: bytes) -> None:
    if len(input_json) > MAX_INPUT_BYTES:
        raise InputTooLargeError(
            f"The input has {len(input_json)} bytes; the limit is {MAX_INPUT_BYTES}. "
            "Store large data and pass its address."
        )


def _variables(vars_json: bytes) -> JsonText:
    text = read_variables(vars_json, "vars") if vars_json else NONE.text
    return NONE if text == NONE.text else JsonText(text)


def _check_places(again: rerun.Again, earlier: Earlier, version: Version) -> None:
    """Refuse places that neither the earlier run nor the version to run has: they would be ignored."""
    for place in [*([again.start] if again.start else []), *again.overrides]:
        path, key = place
        if key not in earlier.run.nodes.get(path, {}) and (path or key not in version.graph.index):
            name = f"{path}/{key}" if path else key
            message = f"The run has no node execution {name!r}."
            raise InvalidArgumentError(message, violations=(Violation("UNKNOWN_NODE", message, "from_node"),))


def _new_state(
    run_id: UUID,
    version: Version,
    input_json: bytes,
    traceparent: str,
    *,
    links: Mapping[str, Linked],
    variables: RunVariables,
    limits: Limits,
    priority: int,
) -> RunState:
    return RunState(
        run_id=run_id,
        project_id=str(version.project_id),
        workflow_id=str(version.workflow_id),
        version_id=str(version.id),
        version_number=version.number,
        graph=version.graph,
        input=input_json,
        links=links,
        vars=variables,
        limits=limits,
        traceparent=traceparent,
        priority=priority,
    )


def _view(state: RunState, new: NewRun) -> RunView:
    """What a query would find, for who has just committed it."""
    times = state.times
    if times is None:
        raise RuntimeError("only what is committed is shown")
    return RunView(
        id=state.run_id,
        project_id=known_id(state.project_id),
        workflow_id=known_id(state.workflow_id),
        version_id=known_id(state.version_id),
        version_number=state.version_number,
        workflow_name=new.workflow_name,
        status=state.status,
        input=state.input,
        output=state.output,
        error=state.error,
        usage=state.usage,
        created_at=times.created_at,
        started_at=times.started_at,
        finished_at=times.finished_at,
        sequence=state.sequence,
        request_hash=new.request_hash,
        rerun_of=new.rerun_of,
        vars=None if state.vars.run is NONE else state.vars.run.text,
    )


async def _signalled(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
