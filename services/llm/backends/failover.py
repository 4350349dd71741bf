"""Gives a call to another replica when one fails, as long as nothing of its answer has been passed on."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from services.kit.errors import DomainError, ResourceExhaustedError, UnavailableError
from services.llm.domain.errors import ModelUnavailableError
from services.llm.domain.model import Piece
from services.llm.domain.routing import Replica, Replicas

T = TypeVar("T")


async def stream_from_one(
    model: str, replicas: Replicas, read: Callable[[Replica], AsyncGenerator[Piece, None]]
) -> AsyncGenerator[Piece, None]:
    """The pieces that `read` gives for the least busy replica, or for another one if that fails before its first piece.

    Raises the last failure, or ModelUnavailableError when no replica may be tried.
    """
    tried: list[Replica] = []
    while True:
        replica = _pick(model, replicas, tried)
        has_begun = False
        try:
            with replica.call():
                async with aclosing(read(replica)) as pieces:
                    async for piece in pieces:
                        if not has_begun:
                            has_begun = True
                            replica.breaker.succeeded()
                        yield piece
            return
        except DomainError as error:
            if not _learn(replica, error, tried) or has_begun or replicas.pick(tried=tried) is None:
                raise


async def ask_one(model: str, replicas: Replicas, ask: Callable[[Replica], Awaitable[T]]) -> T:
    """What `ask` returns for the least busy replica, or for another if that fails. For calls that may be repeated."""
    tried: list[Replica] = []
    while True:
        replica = _pick(model, replicas, tried)
        try:
            with replica.call():
                answer = await ask(replica)
                replica.breaker.succeeded()
                return answer
        except DomainError as error:
            if not _learn(replica, error, tried) or replicas.pick(tried=tried) is None:
                raise


def _pick(model: str, replicas: Replicas, tried: list[Replica]) -> Replica:
    replica = replicas.pick(tried=tried)
    if replica is None:
        raise ModelUnavailableError(
            model,
            "its server has failed repeatedly and is left alone for a moment.",
            retry_after=max(replicas.opens_in, 1.0),
        )
    return replica


def _learn(replica: Replica, error: DomainError, tried: list[Replica]) -> bool:
    """Note a failure; True when another replica might do better."""
    tried.append(replica)
    if isinstance(error, UnavailableError):
        replica.breaker.failed()
        return True
    # It limits its rate or refuses the request: it works.
    replica.breaker.succeeded()
    return isinstance(error, ResourceExhaustedError)
