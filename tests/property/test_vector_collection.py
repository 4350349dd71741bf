"""A collection of the vector service against a dict and numpy: any order of writes, searches, restarts and damage."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from headrace.common.v1.value_pb2 import Json
from headrace.vector.v1.vector_pb2 import (
    INDEX_TYPE_FLAT,
    INDEX_TYPE_HNSW,
    METRIC_COSINE,
    METRIC_IP,
    METRIC_L2,
    IndexConfig,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from services.kit.ids import new_id
from tests.support.backends import drop_database, fresh_database
from tests.support.vector_service import VectorClient, a_record, vector_service

DIMENSION = 3
IDS = st.sampled_from([f"r{number}" for number in range(12)])
# Few values, so that equal scores are common; exact in float32, so that scores are the model's to the last bit or so.
NUMBERS = st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0])
VECTORS = st.lists(NUMBERS, min_size=DIMENSION, max_size=DIMENSION)
COLOURS = st.sampled_from(["red", "blue", None, 7])
"""None = the record has no colour."""


class Replicas:
    """Two replicas of the service over one database, each with files of its own; they outlive the examples."""

    def __init__(self, runner: asyncio.Runner, url: str, folder: Path) -> None:
        self.run = runner.run
        self.url = url
        self.places = [folder / "one", folder / "two"]
        self.stacks = [AsyncExitStack(), AsyncExitStack()]
        self.clients: list[VectorClient] = []
        for number in range(2):
            self.clients.append(self.run(self._start(number)))

    async def _start(self, number: int) -> VectorClient:
        service = vector_service(self.url, self.places[number], "", snapshot_changes=5)
        return await self.stacks[number].enter_async_context(service)

    def stop(self, number: int) -> None:
        self.run(self.stacks[number].aclose())

    def start(self, number: int) -> None:
        self.clients[number] = self.run(self._start(number))

    def files(self) -> list[Path]:
        return [file for place in self.places for file in (place / "indexes").glob("*.index")]


class CollectionMachine(RuleBasedStateMachine):
    """A project of its own on both replicas; every step may use either."""

    service: Replicas

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, tuple[np.ndarray, Any]] = {}
        self.metric: Any = None
        self.project_id = str(new_id())
        self.run = self.service.run

    @property
    def replicas(self) -> list[VectorClient]:
        return [replace(client, project_id=self.project_id) for client in self.service.clients]

    @initialize(
        metric=st.sampled_from([METRIC_COSINE, METRIC_L2, METRIC_IP]),
        records=st.dictionaries(IDS, st.tuples(VECTORS, COLOURS), min_size=8),
        kind=st.sampled_from([INDEX_TYPE_FLAT, INDEX_TYPE_HNSW]),
    )
    def create(self, metric: Any, kind: Any, records: dict[str, tuple[list[float], Any]]) -> None:
        self.metric = metric
        self.run(
            self.replicas[0].call(
                "CreateCollection", name="c", dimension=DIMENSION, metric=metric, index=IndexConfig(type=kind, m=4)
            )
        )
        self.upsert(0, records)

    @rule(replica=st.integers(0, 1), records=st.dictionaries(IDS, st.tuples(VECTORS, COLOURS), min_size=1, max_size=6))
    def upsert(self, replica: int, records: dict[str, tuple[list[float], Any]]) -> None:
        written = [
            a_record(name, vector, metadata=b"{}" if colour is None else orjson.dumps({"colour": colour}))
            for name, (vector, colour) in records.items()
        ]
        self.run(self.replicas[replica].upsert("c", *written))
        self.model |= {name: (np.array(vector), colour) for name, (vector, colour) in records.items()}

    @rule(replica=st.integers(0, 1), ids=st.sets(IDS, min_size=1, max_size=4))
    def delete(self, replica: int, ids: set[str]) -> None:
        answer = self.run(self.replicas[replica].call("DeleteRecords", collection="c", ids=sorted(ids)))
        assert answer.deleted == len(ids & self.model.keys())
        for name in ids:
            self.model.pop(name, None)

    @rule(replica=st.integers(0, 1), colour=COLOURS)
    def delete_by_colour(self, replica: int, colour: Any) -> None:
        gone = {name for name, (_, own) in self.model.items() if own == colour}
        answer = self.run(self.replicas[replica].call("DeleteRecords", collection="c", filter=by(colour)))
        assert answer.deleted == len(gone)
        for name in gone:
            del self.model[name]

    @rule(replica=st.integers(0, 1), query=VECTORS, top_k=st.integers(1, 8), colours=st.lists(COLOURS, max_size=1))
    def search(self, replica: int, query: list[float], top_k: int, colours: list[Any]) -> None:
        fields = {"filter": by(colours[0])} if colours else {}
        matches = self.run(self.replicas[replica].search("c", query, top_k=top_k, **fields))
        expected = sorted(
            (-self.score(np.array(query), vector), name)
            for name, (vector, colour) in self.model.items()
            if not colours or colour == colours[0]
        )[:top_k]
        self.check(np.array(query), matches, expected)

    def check(self, query: np.ndarray, matches: list[Any], expected: list[tuple[float, str]]) -> None:
        found = [(-match.score, match.record.id) for match in matches]
        assert found == sorted(found)
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
        if self.metric == METRIC_COSINE:  # unit vectors are rounded: what is equal in the model may differ a little
            own = [-self.score(query, self.model[name][0]) for _, name in found]
            assert [score for score, _ in found] == pytest.approx(own, abs=1e-5)
        else:
            assert [name for _, name in found] == [name for _, name in expected]

    @invariant()
    def every_replica_finds_all_there_is(self) -> None:
        if self.metric is not None:
            for replica in self.replicas:
                assert set(self.run(replica.found("c", [1.0, 1.0, 1.0], top_k=100))) == self.model.keys()

    @rule(replica=st.integers(0, 1))
    def restart(self, replica: int) -> None:
        self.service.stop(replica)
        self.service.start(replica)

    @rule(replica=st.integers(0, 1), share=st.sampled_from([number / 32 for number in range(33)]), cut=st.booleans())
    def damage_the_files_and_restart(self, replica: int, share: float, cut: bool) -> None:
        self.service.stop(replica)
        for file in self.service.files():
            data = bytearray(file.read_bytes())
            if data:  # else it was cut to nothing before, by a replica that has not looked at it since
                position = int(share * (len(data) - 1))
                data[position] ^= 1
                file.write_bytes(data[:position] if cut else data)
        self.service.start(replica)

    def score(self, query: np.ndarray, vector: np.ndarray) -> float:
        """Rounded as float32 is, so that what is equal there is equal here."""
        if self.metric == METRIC_L2:
            score = 1 / (1 + ((query - vector) ** 2).sum())
        elif self.metric == METRIC_IP:
            score = query @ vector
        else:
            score = query @ vector / np.sqrt((query @ query) * (vector @ vector))
        return round(float(score), 5)


def by(colour: Any) -> Json:
    """The filter for a colour; for None that of the records without."""
    condition = {"field": "colour", "op": "exists", "value": False} if colour is None else None
    return Json(utf8=orjson.dumps(condition or {"field": "colour", "value": colour}))


@pytest.mark.timeout(180)  # about 200 steps, a third of them restarts
def test_a_collection_is_a_dict_that_can_be_searched(tmp_path_factory):
    with asyncio.Runner() as runner:
        url = runner.run(fresh_database("vector"))
        service = Replicas(runner, url, tmp_path_factory.mktemp("vector"))
        machine = type("Machine", (CollectionMachine,), {"service": service})
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=12,
                    stateful_step_count=20,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                ),
            )
        finally:
            for number in range(2):
                service.stop(number)
            runner.run(drop_database(url))
