"""The trace that a run was started in goes with its wake-ups and its jobs."""

from typing import cast
from uuid import uuid4

import nats
import orjson

from services.executor.domain.dispatch import Dispatcher, Places
from services.executor.domain.jobs import make_job
from services.executor.domain.watchers import Watchers
from services.executor.engine import decide
from services.executor.engine.graph import Graph, Node, NodeKind, RetryPolicy
from services.executor.engine.state import RunState
from services.executor.transport import streams
from services.executor.transport.bus import Bus
from tests.support.executors import own_queue

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_wake_up_and_its_job_carry_the_trace_of_their_run(nats_server):
    queue = own_queue()
    kinds = {"noop": NodeKind(inline=False, queue=queue, default_timeout=60)}
    node = Node(
        key="only",
        type="noop",
        config=orjson.dumps({}),
        retry=RetryPolicy(),
        timeout=None,
        continue_on_error=False,
        join_any=False,
    )
    state = RunState(
        run_id=uuid4(),
        project_id=str(uuid4()),
        workflow_id=str(uuid4()),
        version_id=str(uuid4()),
        version_number=1,
        graph=Graph([node], [], kinds),
        input=b"{}",
        traceparent=TRACE,
    )
    decide.start(state)
    client = await nats.connect(nats_server)
    try:
        heard = await client.subscribe(streams.jobs_subject(queue))
        await client.flush()
        bus = Bus("executor", Watchers())
        bus.dispatch_by(Dispatcher(bus, cast("Places", None)))
        await bus.start(client)
        bus.announce(state, state.ready)
        message = await heard.next_msg(timeout=5)
    finally:
        await client.close()
    assert message.headers == {"traceparent": TRACE}
    assert make_job(state, state.root.nodes[0]).traceparent == TRACE
