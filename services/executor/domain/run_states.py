"""States of runs, made new or from their rows, with the versions that they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import orjson

from services.executor.domain.model import RunNotFoundError, Version
from services.executor.domain.store import RunStore, StoredRun
from services.executor.domain.versions import Versions
from services.executor.engine import rerun
from services.executor.engine.graph import Graph
from services.executor.engine.restore import restore
from services.executor.engine.state import Limits, Linked, NodeRow, RunState


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run to go again over, with the graphs that it ran."""

    run: StoredRun
    version: Version
    links: Mapping[str, Linked]

    def plan(self, version: Version, links: Mapping[str, Linked], again: rerun.Again) -> rerun.Plan:
        """What of it is used again under a version."""
        before = rerun.Before(self.version.graph, _graphs(self.links), self.run.nodes)
        return rerun.plan(before, version.graph, _graphs(links), again)


class RunStates:
    """Makes states of runs."""

    def __init__(self, store: RunStore, versions: Versions, limits: Limits | None = None) -> None:
        self._store = store
        self._versions = versions
        self.limits = limits or Limits()

    async def load(self, run_ids: list[UUID]) -> dict[UUID, RunState]:
        """States of these runs as their rows have them; missing ones are left out."""
        return {stored.run_id: await self._restored(stored) for stored in await self._store.load(run_ids)}

    async def earlier(self, run_id: UUID) -> Earlier:
        """A run that another one goes again over. Raises RunNotFoundError."""
        found = await self._store.load([run_id])
        if not found:
            raise RunNotFoundError(run_id)
        (stored,) = found
        return Earlier(stored, await self._versions.get(stored.version_id), await self._links(stored))

    async def _links(self, stored: StoredRun) -> dict[str, Linked]:
        return {
            name: Linked(version_id, (await self._versions.get(version_id)).graph)
            for name, version_id in stored.links.items()
        }

    async def _restored(self, stored: StoredRun) -> RunState:
        version = await self._versions.get(stored.version_id)
        links = await self._links(stored)
        recorded: Mapping[rerun.Place, NodeRow] = {}
        if stored.rerun_of is not None and stored.rerun is not None:
            again = rerun.Again.from_json(orjson.loads(stored.rerun))
            recorded = (await self.earlier(stored.rerun_of)).plan(version, links, again).recorded
        state = RunState(
            run_id=stored.run_id,
            project_id=stored.project_id,
            workflow_id=str(version.workflow_id),
            version_id=str(stored.version_id),
            version_number=version.number,
            graph=version.graph,
            input=stored.input,
            vars=stored.vars,
            links=links,
            recorded=recorded,
            limits=self.limits,
            version=stored.version,
            status=stored.status,
            sequence=stored.sequence,
            output=stored.output,
            error=stored.error,
            usage=stored.usage,
            traceparent=stored.traceparent,
            priority=stored.priority,
        )
        restore(state, stored.nodes)
        return state


def _graphs(links: Mapping[str, Linked]) -> dict[str, Graph]:
    return {name: linked.graph for name, linked in links.items()}
