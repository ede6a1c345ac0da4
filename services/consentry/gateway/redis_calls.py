"""The gateway's Redis commands from many requests at a time, gathered into few round trips."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from redis.asyncio import Redis

Call = tuple[str | bytes | int, ...]


class RedisCalls:
    """Sends the gateway's Redis commands in pipelines: while one is under way, the next gathers.

    For one event loop.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[tuple[Call, dict[str, Any], asyncio.Future[Any]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def call(self, *command: str | bytes | int, **options: Any) -> Any:
        """Send a command, and return what Redis answers; `options` are redis-py's for reading it.

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
            except Exception as error:  # noqa: BLE001 - each caller gets it
                answers = [error] * len(batch)
            except BaseException:
                for _, _, future in batch:
                    future.cancel()
                raise
            for (_, _, future), answer in zip(batch, answers, strict=True):
                _settle(future, answer)


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return  # whoever asked has gone
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
