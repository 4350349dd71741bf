"""What history costs: lists, commits and the engine on tables with many runs, beside the same on empty ones.

`make bench ARGS="--only history --plot history.svg"` fills a database of its own (ten node executions and eleven rows
of events a run, spread over 30 days and 20 projects, one of which has half of it) and prints a table at each number of
rows. Then the older half is removed as retention does, and as much is filled in again: it should not grow on disk.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from services.executor.domain.housekeeping import BATCH
from services.executor.domain.model import NewRun, NodeRef, RunFilter, Version
from services.executor.engine import decide
from services.executor.engine.state import RunState, RunStatus, Usage
from services.executor.storage.housekeeping import PostgresHousekeepingStore
from services.executor.storage.postgres import PostgresRunStore
from services.kit.ids import new_id
from services.kit.lifecycle import collect_seldom
from services.kit.pool import Pool
from services.kit.postgres import open_engine, open_pool
from tests.bench import plot
from tests.bench.machine import backend_seconds, describe, percentile
from tests.support import backends
from tests.support.executors import PROJECT, QUEUES, Executor, a_version, committing, success

Lines = dict[str, list[tuple[float, float]]]
ROWS_OF_A_RUN = 22
"""The run, its ten node executions, its eleven rows of events."""
RARE = UUID(int=1)
"""A workflow with few runs among very many."""
COMMON = UUID(int=2)
NEW = NewRun(workflow_name="w", request_hash=None, started_by=None, timeout_seconds=60)

# Ids as services.kit.ids.new_id makes them: time first.
_RUNS = """
INSERT INTO executor.runs (id, project_id, workflow_id, version_id, version_number, workflow_name, status, version,
    sequence, input, output, prompt_tokens, completion_tokens, model_calls, traceparent, timeout_seconds, created_at,
    deadline_at, started_at, finished_at)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(noise, 1, 3) || '8'
        || substr(noise, 4, 15))::uuid,
    CASE WHEN n % 2 = 0 THEN $1::uuid ELSE lpad(to_hex(n % 38 + 3), 32, '0')::uuid END,
    CASE WHEN n % 20000 = 0 THEN $2::uuid WHEN n % 2 = 0 THEN $3::uuid
        ELSE lpad(to_hex(n % 380 + 100), 32, '0')::uuid END,
    gen_random_uuid(), 1, 'w',
    status, 12, 32, '{"question": "what is it?"}',
    CASE WHEN status >= 4 THEN '{"answer": "it is what it is"}'::bytea END,
    100, 100, 1, '', 60, at, at + interval '10 years', at, CASE WHEN status >= 4 THEN at END
FROM (
    SELECT n, md5(n::text) AS noise, now() - interval '30 days' * (1 - n::float8 / $5) AS at,
        CASE WHEN n % 1000 < 970 THEN 4 WHEN n % 1000 < 990 THEN 5 WHEN n % 1000 < 999 THEN 6 ELSE 3 END AS status
    FROM generate_series($4::int, least($4 + 49999, $5::int - 1)) AS n
) AS made ORDER BY 1
RETURNING id
"""
_NODES = """
INSERT INTO executor.node_executions (run_id, node_key, item_path, type, queue, status, epoch, failures, claims,
    publications, worker, claim_id, port, input, output, prompt_tokens, completion_tokens, model_calls, handler_seconds,
    queued_at, started_at, finished_at)
SELECT id, 'node_' || k, '', 'noop', 'default', 5, 1, 0, 1, 0, '0190a0b0-0000-7000-8000-000000000000',
    'node_' || k || '//1', 'out', '{{"value": 1}}', '{{"value": 1, "text": "some forty bytes of what a node says"}}',
    10, 10, 0, 0.001, now(), now(), now()
FROM unnest($1::uuid[]) AS id, generate_series(1, {}) AS k
"""
_EVENTS = """
INSERT INTO executor.run_events (run_id, first_sequence, events)
SELECT id, k * 3 - 2, $2 FROM unnest($1::uuid[]) AS id, generate_series(1, 11) AS k
"""
_EVENTS_OF_A_COMMIT = (
    b'[{"sequence":1,"type":"node.succeeded","node_key":"node_1","data":{"attempt":1,"output":{"value":1}}},'
    b'{"sequence":2,"type":"node.started","node_key":"node_2","data":{"attempt":1,"worker":"0190a0b0"}}]'
)


async def fill(pool: Pool, runs: int, *, have: int = 0) -> None:
    """Make runs up to this number."""
    async with pool.acquire() as connection:
        await connection.execute("SET synchronous_commit = off")
        for first in range(have, runs, 50_000):
            made = await connection.fetch(_RUNS, PROJECT, RARE, COMMON, first, runs, timeout=600)
            ids = [row[0] for row in made]
            await connection.execute(_NODES.format(10), ids, timeout=600)
            await connection.execute(_EVENTS, ids, _EVENTS_OF_A_COMMIT, timeout=600)
        await connection.execute("RESET synchronous_commit")
        await connection.execute("VACUUM (ANALYZE, PARALLEL 0)", timeout=1800)


Figure = tuple[str, float]
"""What the table says, and what the plot shows of it."""


async def timed(repeat: int, call: Callable[[], Awaitable[object]]) -> Figure:
    """p50 and p99 of a call in milliseconds."""
    took = []
    for _ in range(repeat):
        begun = time.perf_counter()
        await call()
        took.append((time.perf_counter() - begun) * 1e3)
    return f"{statistics.median(took):8.2f} {percentile(took, 0.99):8.2f}", statistics.median(took)


async def lists(store: PostgresRunStore, pool: Pool, large_run: UUID, repeat: int) -> dict[str, Figure]:
    """Times of what people look at."""
    now = datetime.now(UTC)
    middle = (now - timedelta(days=15), UUID(int=0))
    week = RunFilter(created_after=now - timedelta(days=15), created_before=now - timedelta(days=8))
    filters = {
        "runs: newest": (RunFilter(), None),
        "runs: a page in the middle": (RunFilter(), middle),
        "runs: a week": (week, None),
        "runs: failed": (RunFilter((RunStatus.FAILED,)), None),
        "runs: failed or cancelled, middle": (RunFilter((RunStatus.FAILED, RunStatus.CANCELLED)), middle),
        "runs: open": (RunFilter((RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING)), None),
        "runs: succeeded": (RunFilter((RunStatus.SUCCEEDED,)), None),
        "runs: of a workflow": (RunFilter(workflow_id=COMMON), None),
        "runs: of a rare workflow": (RunFilter(workflow_id=RARE), None),
        "runs: failed, of a rare workflow": (RunFilter((RunStatus.FAILED,), RARE), None),
        "runs: failed, of a workflow, a week": (
            RunFilter((RunStatus.FAILED,), COMMON, week.created_after, week.created_before),
            None,
        ),
    }
    found = {}
    for name, (chosen, after) in filters.items():
        found[name] = await timed(repeat, lambda: store.list_runs(PROJECT, chosen, limit=51, after=after))  # noqa: B023 - called at once
    some = [
        row[0] for row in await pool.fetch("SELECT id FROM executor.runs WHERE project_id = $1 LIMIT 5000", PROJECT)
    ]
    pick = random.Random(1)  # noqa: S311 - nothing secret
    found["one run"] = await timed(repeat, lambda: store.get_run(PROJECT, pick.choice(some)))
    found["nodes of a run"] = await timed(
        repeat, lambda: store.list_node_executions(PROJECT, pick.choice(some), limit=51, after=None)
    )
    found["events of a run"] = await timed(
        repeat, lambda: store.list_events(PROJECT, pick.choice(some), after=10, limit=100)
    )
    found["nodes of a run of 10,000"] = await timed(
        max(repeat // 10, 5), lambda: store.list_node_executions(PROJECT, large_run, limit=51, after=None)
    )
    return found


async def commits(store: PostgresRunStore, pool: Pool, version: Version, runs: int, rounds: int) -> Figure:
    """Milliseconds of a commit in which each run has a report and a claim, and processor time of it at both ends."""
    wall: list[float] = []
    own, server = 0.0, await backend_seconds(pool)
    for _ in range(rounds):
        states = [a_state(version) for _ in range(runs)]
        new = {state.run_id: NEW for state in states}
        for position in range(-1, len(version.graph.nodes)):
            for state in states:
                state.clear_changes()
                step(state, position)
            begun, used = time.perf_counter(), time.process_time()
            written = await store.commit(states, {} if position >= 0 else new)
            wall.append((time.perf_counter() - begun) * 1e3)
            own += time.process_time() - used
            if len(written) != runs:
                raise AssertionError("every run is written")
            for state in states:
                state.version += 1
    count = len(wall)
    server = await backend_seconds(pool) - server
    text = (
        f"{statistics.median(wall):8.2f} {percentile(wall, 0.99):8.2f}   processor: client {own / count * 1e3:.2f}, "
        f"server {server / count * 1e3:.2f}"
    )
    return text, statistics.median(wall)


def a_state(version: Version) -> RunState:
    """A new run."""
    return RunState(new_id(), str(PROJECT), str(version.workflow_id), str(version.id), 1, version.graph, b"{}")


def step(state: RunState, position: int) -> None:
    """Begin a run (-1), or report a node and claim the next one."""
    nodes = state.root.nodes
    if position < 0:
        decide.start(state)
        decide.claim(state, nodes[0], 0, worker="w" * 36, claim_id="c" * 36)
        return
    node = nodes[position]
    decide.report_success(state, node, node.epoch, output=b'{"value":1}', port="", usage=Usage(), shown_input=b"{}")
    if position + 1 < len(nodes):
        decide.claim(state, nodes[position + 1], 0, worker="w" * 36, claim_id="c" * 36)


async def engine(executor: Executor, version: Version, runs: int) -> Figure:
    """Nodes a second, with workers that report at once, all in this process."""

    async def one() -> None:
        run_id = new_id()
        await executor.start(run_id, version.id, {})
        # No wake-up is needed: whoever asks knows what is ready.
        jobs = (await executor.jobs.claim("w", [(NodeRef(run_id, version.graph.nodes[0].key), 0)], str(run_id))).jobs
        while jobs:
            report = success(jobs[0].ref, jobs[0].epoch, b'{"value":1}')
            (answer,) = await executor.jobs.report("w", [report], free_slots=1, queues=QUEUES)
            jobs = answer.next

    begun, used = time.perf_counter(), time.process_time()
    for _ in range(0, runs, 32):
        await asyncio.gather(*(one() for _ in range(32)))
    nodes = runs * len(version.graph.nodes)
    took, cpu = time.perf_counter() - begun, time.process_time() - used
    text = f"{nodes / took:8.0f} nodes/s, {cpu / nodes * 1e6:.0f} us of processor time of this process a node"
    return text, took / nodes * 1e3


async def a_large_run(executor: Executor, pool: Pool) -> UUID:
    """A run with 10,000 more node executions than it has."""
    run_id = new_id()
    await executor.start(run_id, await a_version(executor, {"key": "a"}), {})
    await pool.execute(_NODES.format(10_000), [run_id])
    return run_id


async def remove(executor: Executor, url: str, pool: Pool) -> None:
    """Remove the older half of the history, and print how fast, and what a commit took meanwhile."""
    engine = open_engine(url)
    store = PostgresHousekeepingStore(engine)
    version = await executor.versions.get(await a_version(executor, *({"key": f"n{n}"} for n in range(10))))
    meanwhile = asyncio.create_task(commits(executor.store, pool, version, 8, 20))
    begun, used, batches, runs = time.perf_counter(), await backend_seconds(pool), list[float](), 0
    more = True
    while more:
        before = time.perf_counter()
        removed = await store.remove_runs(timedelta(days=15), limit=BATCH)
        batches.append((time.perf_counter() - before) * 1e3)
        runs, more = runs + removed.count, removed.more
        await asyncio.sleep(batches[-1] / 1e3)  # as the housekeeper rests
    took, used = time.perf_counter() - begun, await backend_seconds(pool) - used
    print(
        f"\nRemoved {runs:,} runs of {ROWS_OF_A_RUN} rows in {took:.0f} s: {runs * ROWS_OF_A_RUN / took:,.0f} rows/s, "
        f"server {used / max(runs, 1) * 1e3:.2f} ms of processor time a run\n"
        f"  a batch p50 {statistics.median(batches):.0f} ms, longest {max(batches):.0f} ms\n"
        f"  a commit of 8 runs meanwhile, ms {(await meanwhile)[0]}"
    )
    await engine.dispose()


async def measure(executor: Executor, pool: Pool, large_run: UUID, repeat: int) -> dict[str, float]:
    """Print one column of the table; milliseconds by name."""
    (rows,) = await pool.fetch(
        "SELECT (SELECT count(*) FROM executor.runs), (SELECT count(*) FROM executor.node_executions), "
        "pg_size_pretty(pg_database_size(current_database()))"
    )
    print(f"\n{rows[0]:,} runs, {rows[1]:,} node executions, {rows[2]} on disk; {describe()}")
    print(f"  {'ms':<40} {'p50':>8} {'p99':>8}")
    version = await executor.versions.get(await a_version(executor, *({"key": f"n{n}"} for n in range(10))))
    found = {}
    for runs in (1, 8, 32):
        found[f"commit of {runs} runs"] = await commits(executor.store, pool, version, runs, repeat // 2)
    found["engine, 32 chains of 10 at a time"] = await engine(executor, version, repeat * 4)
    found |= await lists(executor.store, pool, large_run, repeat)
    for name, (text, _) in found.items():
        print(f"  {name:<40} {text}", flush=True)
    return {name: value for name, (_, value) in found.items()}


async def grow(executor: Executor, pool: Pool, rows: list[int], repeat: int) -> Lines:
    """Measure on empty tables, then at each number of rows; milliseconds by name and rows."""
    large_run, lines, have = await a_large_run(executor, pool), Lines(), 0
    for wanted in (0, *rows):
        begun = time.perf_counter()
        await fill(pool, wanted // ROWS_OF_A_RUN, have=have)
        have = wanted // ROWS_OF_A_RUN
        print(f"\n{wanted:,} rows of history, filled in {time.perf_counter() - begun:.0f} s")
        for name, value in (await measure(executor, pool, large_run, repeat)).items():
            lines.setdefault(name, []).append((max(wanted, 1), value))
    print("\nTimes of the empty tables, for each number of rows")
    for name, points in lines.items():
        print(f"  {name:<40} {' '.join(f'{value / points[0][1]:8.2f}' for _, value in points)}")
    return lines


async def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=--only history", description=__doc__)
    parser.add_argument("--rows", default="1000000,10000000", help="of history, comma-separated")
    parser.add_argument("--repeat", type=int, default=100, help="times that each list is read")
    parser.add_argument("--no-removal", action="store_true", help="leave out what retention costs")
    parser.add_argument("--plot", type=Path, help="where to write a plot (SVG) of commits and engine")
    given = parser.parse_args(arguments)
    url = await backends.fresh_database("executor")
    pool = await open_pool(url, size=8)
    executor = Executor(PostgresRunStore(pool))
    rows = [int(count) for count in given.rows.split(",")]
    try:
        async with committing(executor):
            collect_seldom()  # as services do
            lines = await grow(executor, pool, rows, given.repeat)
            if given.plot:
                shown = {name: points for name, points in lines.items() if name.startswith(("commit", "engine"))}
                given.plot.write_text(plot.svg("Milliseconds by rows of history: a commit, a node", shown))
            if not given.no_removal:
                await remove(executor, url, pool)
                await fill(pool, rows[-1] // ROWS_OF_A_RUN // 2)
                await measure(executor, pool, await a_large_run(executor, pool), given.repeat)
    finally:
        await pool.close()
        await backends.drop_database(url)


if __name__ == "__main__":
    asyncio.run(main())
