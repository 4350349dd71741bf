"""Large values, stored once in a project by the hash of their content.

Where a value is over MAX_INLINE_BYTES its row holds a reference: a zero byte, which no JSON text begins with, and the
SHA-256 of the content. `executor.payloads` has the content, `executor.run_payloads` says which runs use it; both are
written by the statement that writes the row, so no reference is ever without its content.

Removal, and why it takes nothing that is in use. A commit that refers to a content locks its row and keeps `used_at`
within an hour of now; the removal deletes rows that were not used for a day and that no run uses.

- The commit comes first: the removal leaves the locked row for later, or sees its new `used_at`, and leaves it.
  If `used_at` was fresh enough to be left as it was, the row is not a day old, so no removal is after it.
- The removal comes first: the commit's INSERT waits for its end and then inserts the content anew.
- A removal that begins within a day of the commit is stopped by `used_at`. One that begins later sees the commit's row
  in `run_payloads`, because a statement does not last a day.
"""

from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha256
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from services.executor.domain.store import UnstorableError
from services.executor.engine.state import RunState

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
T = TypeVar("T")

MAX_INLINE_BYTES = 16 * 1024
"""Larger values are stored by content."""
MARK = b"\x00"
"""What references begin with."""
_READS = 3
"""Times that rows are read again because what they referred to is gone: they were changed or removed meanwhile."""

INSERT_PAYLOADS = """
, contents AS (
    INSERT INTO executor.payloads AS p (project_id, hash, data)
    SELECT u.project_id, ($values::bytea[])[u.hash], ($values::bytea[])[u.data]
    FROM json_to_recordset($contents::json) AS u (project_id uuid, hash int, data int)
    ON CONFLICT (project_id, hash) DO UPDATE SET used_at = now() WHERE p.used_at < now() - interval '1 hour'
), uses AS (
    INSERT INTO executor.run_payloads (run_id, project_id, hash)
    SELECT u.run_id, u.project_id, ($values::bytea[])[u.hash]
    FROM json_to_recordset($uses::json) AS u (run_id uuid, project_id uuid, hash int)
    WHERE u.run_id = ANY (ARRAY(SELECT id FROM written))
    ON CONFLICT DO NOTHING
)
"""
_READ = """
SELECT project_id, hash, data FROM executor.payloads
WHERE project_id = ANY($1::uuid[]) AND hash = ANY($2::bytea[])
"""


class Payloads:
    """Large values of one commit."""

    def __init__(self) -> None:
        self._contents: dict[tuple[str, bytes], bytes] = {}
        self._uses: dict[tuple[str, str, bytes], None] = {}

    def __bool__(self) -> bool:
        return bool(self._contents)

    def reference(self, state: RunState, value: bytes) -> bytes:
        """What a row holds for a large JSON text. Raises UnstorableError for what could be taken for a reference."""
        if value.startswith(MARK):
            raise UnstorableError("a value begins with a zero byte, which is not JSON")
        digest = sha256(value).digest()
        self._contents[state.project_id, digest] = value
        self._uses[state.run_text, state.project_id, digest] = None
        return MARK + digest

    def rows(self, add: Callable[[bytes], int | None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of contents and of their uses; `add` gives the place of a value. Sorted: commits lock in one order."""
        places: dict[tuple[str, bytes], int | None] = {}
        contents: list[dict[str, Any]] = []
        for project_id, digest in sorted(self._contents):
            places[project_id, digest] = add(digest)
            data = add(self._contents[project_id, digest])
            contents.append({"project_id": project_id, "hash": places[project_id, digest], "data": data})
        uses = [
            {"run_id": run_id, "project_id": project_id, "hash": places[project_id, digest]}
            for run_id, project_id, digest in self._uses
        ]
        return contents, uses


class _ContentGoneError(Exception):
    """A row that was read referred to a content that is not there any more."""


class Contents:
    """Contents that rows refer to, one object for each however many refer to it."""

    def __init__(self, found: dict[tuple[UUID, bytes], bytes]) -> None:
        self._found = found

    @classmethod
    async def read(cls, connection: Connection, values: Iterable[tuple[UUID, bytes | None]]) -> "Contents":
        """Those that these values of projects refer to."""
        wanted = {(project_id, value[1:]) for project_id, value in values if value and value[0] == MARK[0]}
        if not wanted:
            return cls({})
        rows = await connection.fetch(_READ, {key[0] for key in wanted}, {key[1] for key in wanted})
        found = {(row[0], row[1]): row[2] for row in rows}
        if missing := wanted - found.keys():
            raise _ContentGoneError(f"{len(missing)} of {len(wanted)} contents are missing")
        return cls(found)

    def of(self, project_id: UUID, value: bytes | None) -> bytes | None:
        """The value itself, or what it refers to."""
        return value if not value or value[0] != MARK[0] else self._found[project_id, value[1:]]


async def read_steadily(read: Callable[[], Awaitable[T]]) -> T:
    """Read rows and their contents; again if contents went with rows that were removed or changed in between."""
    for _ in range(_READS - 1):
        try:
            return await read()
        except _ContentGoneError:
            continue
    return await read()
