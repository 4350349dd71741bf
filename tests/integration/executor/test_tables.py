"""Projects' own tables through the real service on a real PostgreSQL."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import orjson
import pytest
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import table_service_pb2 as pb
from headrace.executor.v1.table_service_pb2_grpc import TableServiceStub

from services.executor.storage.project_tables import PostgresProjectTableStore, metadata
from services.executor.transport.tables_grpc import GRANT_METHODS, SERVICE_NAME, add_table_service
from services.kit.errors import (
    AlreadyExistsError,
    DomainError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.kit.migrate import differences
from services.kit.postgres import open_engine

TOKENS = CallerTokens(os.urandom(32))
COLUMNS = {
    "id": pb.COLUMN_TYPE_INTEGER,
    "name": pb.COLUMN_TYPE_TEXT,
    "score": pb.COLUMN_TYPE_NUMBER,
    "done": pb.COLUMN_TYPE_BOOLEAN,
    "at": pb.COLUMN_TYPE_TIMESTAMP,
    "meta": pb.COLUMN_TYPE_JSON,
}
WRITES = {
    "insert": pb.WRITE_OPERATION_INSERT,
    "upsert": pb.WRITE_OPERATION_UPSERT,
    "update": pb.WRITE_OPERATION_UPDATE,
    "delete": pb.WRITE_OPERATION_DELETE,
}


class Tables:
    """The client of one project."""

    def __init__(self, stub: TableServiceStub, project_id: str) -> None:
        self.stub = stub
        self.project_id = project_id
        self.rpc = Rpc(TOKENS.for_service("gateway"))

    async def create(self, name: str = "notes", *, key: tuple[str, ...] = ("id",), **extra: Any) -> pb.Table:
        columns = extra.pop("columns", None) or [pb.Column(name=n, type=t, nullable=True) for n, t in COLUMNS.items()]
        request = pb.CreateTableRequest(project_id=self.project_id, name=name, columns=columns, key=key, **extra)
        return (await self.rpc.call(self.stub.CreateTable, request, timeout=10)).table

    async def write(self, operation: str, rows: Any, *, table: str = "notes", **extra: Any) -> pb.WriteRowsResponse:
        request = pb.WriteRowsRequest(
            project_id=self.project_id,
            table=table,
            operation=WRITES[operation],
            rows=value_pb2.Json(utf8=orjson.dumps(rows)),
            **extra,
        )
        return await self.rpc.call(self.stub.WriteRows, request, timeout=10)

    async def query(self, *, where: Any = None, **extra: Any) -> tuple[list[dict[str, Any]], str]:
        request = pb.QueryRowsRequest(project_id=self.project_id, **{"table": "notes"} | extra)
        if where is not None:
            request.filter.utf8 = orjson.dumps(where)
        answer = await self.rpc.call(self.stub.QueryRows, request, timeout=10)
        return orjson.loads(answer.rows.utf8), answer.next_page_token

    async def ids(self, where: Any = None, **extra: Any) -> list[int]:
        rows, _ = await self.query(where=where, columns=["id"], **extra)
        return [row["id"] for row in rows]


@pytest.fixture(scope="module")
async def stub(database, tmp_path_factory) -> AsyncIterator[TableServiceStub]:
    engine = open_engine(await database("executor"))
    address = f"unix:{tmp_path_factory.mktemp('tables')}/s"
    server = GrpcServer(listen=address, tokens=TOKENS, service_names=(SERVICE_NAME,), grant_methods=GRANT_METHODS)
    add_table_service(server.server, PostgresProjectTableStore(engine))
    await server.start()
    async with open_channel(address) as channel:
        yield TableServiceStub(channel)
    await server.stop(0)
    await engine.dispose()


@pytest.fixture
def tables(stub) -> Tables:
    return Tables(stub, str(uuid4()))


async def refused(call: Any, kind: type[DomainError], reason: str) -> DomainError:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason == reason, caught.value.message
    return caught.value


async def test_values_come_back_as_they_were_written(tables):
    await tables.create()
    row = {"id": 2**63 - 1, "name": "naïve '; DROP TABLE x; -- \"q\" {{ input }}", "score": 0.1, "done": True,
           "at": "2030-01-31T13:00:00+01:00", "meta": {"a": [1, 1.5, None], "b": "ü"}}  # fmt: skip
    written = await tables.write("insert", [row, {"id": 3.0}])
    expected = [row | {"at": "2030-01-31T12:00:00+00:00"}, {name: None for name in COLUMNS} | {"id": 3}]
    assert (written.rows_affected, orjson.loads(written.rows.utf8)) == (2, expected)
    assert await tables.query() == (expected, "")


async def test_upsert_update_and_delete_touch_the_rows_with_the_key_and_only_the_given_columns(tables):
    await tables.create()
    await tables.write("insert", [{"id": 1, "name": "a", "score": 1}, {"id": 2, "name": "b"}])
    upserted = await tables.write("upsert", [{"id": 2, "score": 2}, {"id": 3, "name": "c"}, {"id": 1, "name": "A"}])
    assert [row["id"] for row in orjson.loads(upserted.rows.utf8)] == [2, 3, 1]
    updated = await tables.write("update", [{"id": 3, "done": True}, {"id": 99, "done": True}])
    assert updated.rows_affected == 1
    rows, _ = await tables.query(columns=["id", "name", "score", "done"])
    assert rows == [
        {"id": 1, "name": "A", "score": 1, "done": None},
        {"id": 2, "name": "b", "score": 2, "done": None},
        {"id": 3, "name": "c", "score": None, "done": True},
    ]
    by_name = await tables.write("delete", [{"name": "b"}, {"name": "nobody"}], key=["name"])
    assert orjson.loads(by_name.rows.utf8)[0]["id"] == 2
    assert await tables.ids() == [1, 3]


async def test_an_effect_happens_once_and_a_repetition_returns_the_first_result(tables):
    await tables.create(key=())
    writes = [tables.write("insert", [{"id": n}], effect_key="k1") for n in range(8)]
    answers = await asyncio.gather(*writes)
    assert sorted(answer.repeated_effect for answer in answers) == [False] + [True] * 7
    assert len({(answer.rows_affected, answer.rows.utf8) for answer in answers}) == 1
    assert len(await tables.ids()) == 1


async def test_a_failed_effect_may_be_tried_again_and_keys_of_other_projects_do_not_meet(tables):
    await tables.create()
    await refused(tables.write("insert", [{"id": "x"}], effect_key="k"), InvalidArgumentError, "TYPE_MISMATCH")
    assert not (await tables.write("insert", [{"id": 1}], effect_key="k")).repeated_effect
    other = Tables(tables.stub, str(uuid4()))
    await other.create()
    assert not (await other.write("insert", [{"id": 1}], effect_key="k")).repeated_effect


async def test_a_wrong_value_is_refused_with_its_row_and_column(tables):
    await tables.create()
    rows = [{"id": 1}, {"id": "two"}, {"id": 3, "score": True, "at": "yesterday", "nmae": "x"}, {"name": "no id"}, {}]
    error = await refused(tables.write("insert", rows), InvalidArgumentError, "TYPE_MISMATCH")
    assert [(item.path, item.code) for item in error.violations] == [
        ("rows[1].id", "TYPE_MISMATCH"),
        ("rows[2].score", "TYPE_MISMATCH"),
        ("rows[2].at", "TYPE_MISMATCH"),
        ("rows[2].nmae", "COLUMN_NOT_FOUND"),
        ("rows[3]", "VALUE_REQUIRED"),
        ("rows[4]", "EMPTY_ROW"),
        ("rows[4]", "VALUE_REQUIRED"),
    ]
    assert await tables.ids() == []


async def test_a_key_is_unique_and_needed(tables):
    await tables.create()
    await tables.write("insert", [{"id": 1}])
    await refused(tables.write("insert", [{"id": 2}, {"id": 1}]), AlreadyExistsError, "DUPLICATE_KEY")
    await refused(tables.write("upsert", [{"id": 5}, {"id": 5}]), AlreadyExistsError, "DUPLICATE_KEY")
    await refused(tables.write("upsert", [{"id": 1}], key=["name"]), InvalidArgumentError, "KEY_REQUIRED")
    assert await tables.ids() == [1]
    await tables.create("keyless", key=())
    await refused(tables.write("update", [{"id": 1}], table="keyless"), InvalidArgumentError, "KEY_REQUIRED")
    long = [pb.Column(name="word", type=pb.COLUMN_TYPE_TEXT)]
    await tables.create("words", columns=long, key=("word",))
    unlike = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    await refused(tables.write("insert", [{"word": unlike}], table="words"), InvalidArgumentError, "TYPE_MISMATCH")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"field": "name", "op": "eq", "value": "b"}, [2]),
        ({"field": "name", "op": "ne", "value": "b"}, [1, 3]),
        ({"field": "name", "op": "eq", "value": None}, [3]),
        ({"field": "name", "op": "exists"}, [1, 2]),
        ({"field": "name", "op": "in", "value": ["a", None]}, [1, 3]),
        ({"field": "id", "op": "gt", "value": 1.5}, [2, 3]),
        ({"field": "id", "op": "in", "value": [1, 1e30]}, [1]),
        ({"field": "score", "op": "lte", "value": 2}, [1, 2]),
        ({"field": "done", "op": "eq", "value": True}, [1]),
        ({"not": {"field": "done", "op": "eq", "value": True}}, [2, 3]),
        ({"field": "at", "op": "lt", "value": "2025-01-01T00:00:00Z"}, [1]),
        ({"field": "meta.lang", "op": "eq", "value": "de"}, [1]),
        ({"field": "meta.n", "op": "gt", "value": 5}, [2]),
        ({"and": [{"field": "id", "op": "gte", "value": 2}, {"or": [{"field": "id", "value": 3}]}]}, [3]),
        ({"and": []}, [1, 2, 3]),
        ({"or": []}, []),
    ],
)
async def test_filters(stub, filtered, where, found):
    assert await filtered.ids(where) == found


@pytest.fixture(scope="module")
async def filtered(stub) -> Tables:
    tables = Tables(stub, str(uuid4()))
    await tables.create()
    await tables.write(
        "insert",
        [
            {"id": 1, "name": "a", "score": 1.5, "done": True, "at": "2024-05-01T00:00:00Z", "meta": {"lang": "de"}},
            {"id": 2, "name": "b", "score": 2, "done": False, "at": "2026-05-01T00:00:00Z", "meta": {"n": 7}},
            {"id": 3, "meta": {"n": "text"}},
        ],
    )
    return tables


async def test_hostile_names_and_values_are_refused_or_stay_values(filtered):
    for name in ('id"; DROP TABLE x; --', "_row", "ID", "id ", "t.id", "pg_sleep(1)"):
        await refused(filtered.ids({"field": name, "value": 1}), InvalidArgumentError, "COLUMN_NOT_FOUND")
        await refused(filtered.ids(order_by=[name]), InvalidArgumentError, "COLUMN_NOT_FOUND")
        await refused(filtered.query(columns=[name]), InvalidArgumentError, "COLUMN_NOT_FOUND")
        await refused(filtered.write("insert", [{name: 1}]), InvalidArgumentError, "COLUMN_NOT_FOUND")
        await refused(filtered.write("delete", [{name: 1}], key=[name]), InvalidArgumentError, "COLUMN_NOT_FOUND")
        await refused(filtered.create(name), InvalidArgumentError, "INVALID_ARGUMENT")
    await refused(filtered.ids({"field": "id", "value": "1 OR 1=1"}), InvalidArgumentError, "INVALID_FILTER")
    assert await filtered.ids({"field": "name", "value": "a' OR '1'='1"}) == []
    assert await filtered.ids({"field": "meta.a'} OR true --", "value": 1}) == []


async def test_pages_follow_each_other_with_and_without_an_order(tables):
    await tables.create()
    await tables.write("insert", [{"id": n, "name": "even" if n % 2 == 0 else "odd"} for n in range(7)])
    for order, expected in (([], [0, 1, 2, 3, 4, 5, 6]), (["-name", "id"], [1, 3, 5, 0, 2, 4, 6])):
        seen, token = [], ""
        while True:
            rows, token = await tables.query(order_by=order, page_size=3, page_token=token)
            seen += [row["id"] for row in rows]
            if not token:
                break
        assert seen == expected
    await refused(tables.query(page_token="WyJ4Il0"), InvalidArgumentError, "INVALID_ARGUMENT")


async def test_a_table_is_listed_returned_and_deleted_and_unknown_to_other_projects(tables):
    other = Tables(tables.stub, str(uuid4()))
    made = await tables.create("b")
    await tables.create("a")
    assert [(column.name, column.nullable) for column in made.columns][:2] == [("id", False), ("name", True)]
    listed = await tables.rpc.call(
        tables.stub.ListTables, pb.ListTablesRequest(project_id=tables.project_id, page_size=1), timeout=5
    )
    assert ([table.name for table in listed.tables], bool(listed.next_page_token)) == (["a"], True)
    for call in (
        other.query(table="a"),
        other.write("insert", [{"id": 1}], table="a"),
        other.rpc.call(other.stub.GetTable, pb.GetTableRequest(project_id=other.project_id, name="a"), timeout=5),
        other.rpc.call(other.stub.DeleteTable, pb.DeleteTableRequest(project_id=other.project_id, name="a"), timeout=5),
    ):
        await refused(call, NotFoundError, "TABLE_NOT_FOUND")
    request = pb.DeleteTableRequest(project_id=tables.project_id, name="a")
    await tables.rpc.call(tables.stub.DeleteTable, request, timeout=5)
    await refused(tables.query(table="a"), NotFoundError, "TABLE_NOT_FOUND")


async def test_creating_is_idempotent_and_safe_under_concurrency(tables):
    made = await asyncio.gather(*(tables.create(request_id="r1") for _ in range(4)))
    assert len({table.SerializeToString(deterministic=True) for table in made}) == 1
    await refused(tables.create("other", request_id="r1"), IdempotencyKeyReusedError, "IDEMPOTENCY_KEY_REUSED")
    await refused(tables.create(), AlreadyExistsError, "TABLE_EXISTS")
    answers = await asyncio.gather(*(tables.create("race") for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(answer, AlreadyExistsError) for answer in answers) == 3


async def test_a_wrong_definition_is_refused_with_everything_that_is_wrong(tables):
    columns = [pb.Column(name=name, type=pb.COLUMN_TYPE_JSON) for name in ("a", "a", "B")]
    error = await refused(
        tables.create("Notes", columns=columns, key=("a", "x")), InvalidArgumentError, "INVALID_ARGUMENT"
    )
    assert {item.path for item in error.violations} == {
        "name",
        "columns[1].name",
        "columns[2].name",
        "key[0]",
        "key[1]",
    }


async def test_a_worker_s_grant_reads_and_writes_rows_of_its_project_only(tables):
    await tables.create()
    grant = TOKENS.mint_grant(project_id=tables.project_id, run_id="r", lifetime_seconds=60)
    request = pb.QueryRowsRequest(project_id=tables.project_id, table="notes")
    await tables.rpc.call(tables.stub.QueryRows, request, timeout=5, token=grant)
    request.project_id = str(uuid4())
    with pytest.raises(NotFoundError):
        await tables.rpc.call(tables.stub.QueryRows, request, timeout=5, token=grant)
    create = pb.CreateTableRequest(project_id=tables.project_id, name="x")
    with pytest.raises(PermissionDeniedError):
        await tables.rpc.call(tables.stub.CreateTable, create, timeout=5, token=grant)


async def test_the_declared_tables_are_what_the_migrations_make(database):
    assert await differences(await database("executor"), schema="executor", metadata=metadata) == []
