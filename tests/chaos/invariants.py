"""What must hold at any moment while faults happen, asked of PostgreSQL once a second."""

from __future__ import annotations

import asyncpg

# Each query returns what breaks it. A look sees one moment: READ COMMITTED gives one snapshot to one statement.
INVARIANTS = {
    "an ended run has no open node": """
        SELECT r.id::text || ' ' || n.node_key FROM executor.runs r JOIN executor.node_executions n ON n.run_id = r.id
        WHERE r.status >= 4 AND n.status IN (1, 2, 3, 4) LIMIT 5
    """,
    "an open run has something that can go on": """
        SELECT r.id::text FROM executor.runs r WHERE r.status IN (2, 3) AND NOT EXISTS (
            SELECT FROM executor.node_executions n WHERE n.run_id = r.id AND n.status IN (2, 3, 4)) LIMIT 5
    """,
    "a ready node is woken again": """
        SELECT n.run_id::text || ' ' || n.node_key FROM executor.node_executions n
        WHERE n.status = 2 AND n.due_at < now() - interval '30 seconds' LIMIT 5
    """,
    "a claim of a worker that is gone is taken away": """
        SELECT n.run_id::text || ' ' || n.node_key FROM executor.node_executions n
        JOIN executor.workers w ON w.id = n.worker
        WHERE n.status = 3 AND w.lease_until < now() - interval '30 seconds' LIMIT 5
    """,
    "events are numbered up to the run's last": """
        SELECT r.id::text FROM executor.runs r WHERE r.sequence < (
            SELECT max(first_sequence) FROM executor.run_events e WHERE e.run_id = r.id) LIMIT 5
    """,
}


async def broken(connection: asyncpg.Connection) -> list[str]:  # type: ignore[type-arg]  # rows of any kind
    """The invariants that do not hold now, each with examples."""
    found = []
    for name, query in INVARIANTS.items():
        rows = await connection.fetch(query)
        if rows:
            found.append(f"{name}, but: {', '.join(row[0] for row in rows)}")
    return found
