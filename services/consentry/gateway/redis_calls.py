"""Commands to Redis from many requests at a time, a round trip for all that have gathered since the
last one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from redis.asyncio import Redis

Call = tuple[str | bytes | int, ...]


class RedisCalls:
    """Sends commands in pipelines: one is on its way, the next one gathers meanwhile.

    For one event loop.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[tuple[Call, dict[str, Any], asyncio.Future[Any]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def call(self, *command: str | bytes | int, **options: Any) -> Any:
        """What Redis answers to the command; `options` tell redis-py how to read that.

        Raises RedisError.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, options, future))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, deque()
            pipe = self._redis.pipeline(transaction=False)
            for command, options, _ in batch:
                pipe.execute_command(*command, **options)
            try:
                answers: list[Any] = await pipe.execute(raise_on_error=False)
            except Exception as error:  # noqa: BLE001 - each of those who asked is told
                answers = [error] * len(batch)
            except BaseException:
                for _, _, future in batch:
                    future.cancel()
                raise
            for (_, _, future), answer in zip(batch, answers, strict=True):
                _tell(future, answer)


def _tell(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return  # whoever asked has gone
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
