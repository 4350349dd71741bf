"""The lock that many hold to read or one to write."""

from __future__ import annotations

import asyncio
import random

from services.vector.domain.locks import SharedLock


async def test_writers_are_alone_and_nobody_waits_for_ever_also_when_some_give_up():
    lock = SharedLock()
    chance = random.Random(11)  # noqa: S311 - for interleavings
    readers = writers = done = 0

    async def read() -> None:
        nonlocal readers, done
        async with lock.shared():
            readers += 1
            assert writers == 0
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
            assert writers == 0
            readers -= 1
            done += 1

    async def write() -> None:
        nonlocal writers, done
        async with lock.exclusive():
            writers += 1
            assert (writers, readers) == (1, 0)
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
            writers -= 1
            done += 1

    async def give_up() -> None:
        task = asyncio.create_task(chance.choice([hold, hold_alone])())
        for _ in range(chance.randint(0, 4)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def hold() -> None:
        async with lock.shared():
            await asyncio.sleep(0)

    async def hold_alone() -> None:
        async with lock.exclusive():
            await asyncio.sleep(0)

    kinds = [read, read, write, give_up]
    async with asyncio.timeout(10):
        chosen = [chance.choice(kinds) for _ in range(2000)]
        await asyncio.gather(*(each() for each in chosen))
    assert done == sum(each is not give_up for each in chosen)


async def test_readers_that_waited_go_before_the_next_writer():
    lock = SharedLock()
    order = []

    async def take(name, holding):
        async with holding:
            order.append(name)
            await asyncio.sleep(0)

    async with lock.exclusive():
        tasks = [
            asyncio.create_task(take("second writer", lock.exclusive())),
            asyncio.create_task(take("reader", lock.shared())),
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["reader", "second writer"]
