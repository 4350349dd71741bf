"""Names of the queues that workers are woken by. A node type names its queue; beside each is one for suspects.

A suspect is a node execution that has cost workers: it may be what kills them. It waits in a queue of its own, and is
run by a process that runs nothing else meanwhile (`services.executor.worker.suspects`).
"""

_ALONE = "-alone"


def alone(queue: str) -> str:
    """The queue of a queue's suspects. A token of a NATS subject, as every queue."""
    return f"{queue}{_ALONE}"


def is_alone(queue: str) -> bool:
    """Whether it is a queue of suspects."""
    return queue.endswith(_ALONE)
