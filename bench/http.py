"""A cheap HTTP/1.1 load: keep-alive connections, requests made before the clock starts, answers
barely looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.figures import SECOND_MICROS, CannotMeasure

ANSWER_SECONDS_MAX = 60.0


class Loaded(NamedTuple):
    """What came back: how many answers of each status, in how many seconds, and each answer's time
    in microseconds.
    """

    statuses: Counter[int]
    seconds: float
    samples_micros: Sequence[int]


def request_of(
    path: str, body: bytes, *, kind: str = "application/json", headers: str = ""
) -> bytes:
    """The bytes of a POST; `headers` are whole lines, each with its line end."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer dev:bench:producer\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class LoadConnection(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._status = 0
        self._missing = -1
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(CannotMeasure(f"The server closed a connection: {error}."))

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """Send a request; the status of its answer once all of it has come."""
        assert self._transport is not None
        self._answer, self._missing, self._head = (
            asyncio.get_running_loop().create_future(),
            -1,
            b"",
        )
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._missing < 0:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._status = int(head[9:12])
            lower = head.lower()
            place = lower.find(b"content-length: ")
            self._missing = int(lower[place + 16 :].partition(b"\r")[0]) if place >= 0 else 0
            data = rest
        self._missing -= len(data)
        if self._missing <= 0 and self._answer is not None:
            self._answer.set_result(self._status)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


async def _connect(address: str, count: int) -> list[LoadConnection]:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(LoadConnection, host, int(port)))[1] for _ in range(count)
    ]


async def closed_loop(address: str, requests: Sequence[bytes], *, connections: int) -> Loaded:
    """Send everything over so many connections, each as soon as the one before it is answered: the
    most there is.
    """
    found = await _connect(address, connections)
    left: Iterator[bytes] = iter(requests)
    statuses: Counter[int] = Counter()
    samples: list[int] = []

    async def run(connection: LoadConnection) -> None:
        for request in left:
            started = time.perf_counter_ns()
            statuses[await connection.ask(request)] += 1
            samples.append((time.perf_counter_ns() - started) // 1000)

    started = time.perf_counter()
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await asyncio.gather(*map(run, found))
    seconds = time.perf_counter() - started
    for connection in found:
        connection.close()
    return Loaded(statuses, seconds, samples)


async def open_loop(
    address: str, requests: Sequence[bytes], *, rate: float, connections: int
) -> Loaded:
    """Send each at its own time, answers or not; an answer's time counts from when its request was
    meant to be sent.
    """
    idle = deque(await _connect(address, connections))
    every = list(idle)
    statuses: Counter[int] = Counter()
    samples: list[int] = []
    start = time.perf_counter() + 0.1
    asked = []
    for place, request in enumerate(requests):
        intended = start + place / rate
        if (wait := intended - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if not idle:
            idle.extend(await _connect(address, connections))
            every.extend(idle)
        asked.append(
            asyncio.create_task(_time(idle.popleft(), request, intended, idle, statuses, samples))
        )
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await asyncio.gather(*asked)
    seconds = time.perf_counter() - start
    for connection in every:
        connection.close()
    return Loaded(statuses, seconds, samples)


async def _time(
    connection: LoadConnection,
    request: bytes,
    intended: float,
    idle: deque[LoadConnection],
    statuses: Counter[int],
    samples: list[int],
) -> None:
    statuses[await connection.ask(request)] += 1
    samples.append(round((time.perf_counter() - intended) * SECOND_MICROS))
    idle.append(connection)
