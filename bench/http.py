"""A cheap HTTP/1.1 load.

Connections are kept alive, requests are made before the clock starts, and of an answer only the
status and the length are read.
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
    """The answers of a load: their number by status, the seconds that all of it took.

    `samples_micros` has each answer's time in microseconds.
    """

    statuses: Counter[int]
    seconds: float
    samples_micros: Sequence[int]


def request_of(
    path: str, body: bytes, *, kind: str = "application/json", headers: str = ""
) -> bytes:
    """Return the bytes of a POST; `headers` are whole lines, each with its line end."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer dev:bench:producer\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class LoadConnection(asyncio.Protocol):
    """One connection, for one request at a time."""

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

    def send(self, request: bytes) -> asyncio.Future[int]:
        """Send a request; the future gets the status of the answer when all of it has come."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._missing = -1
        self._head = b""
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
            _, _, after_name = head.lower().partition(b"content-length: ")
            self._missing = int(after_name.partition(b"\r")[0] or 0)
            data = rest
        self._missing -= len(data)
        if self._missing <= 0 and self._answer is not None:
            self._answer.set_result(self._status)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


async def _connect(address: str, count: int) -> list[LoadConnection]:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    connections: list[LoadConnection] = []
    for _ in range(count):
        _, connection = await loop.create_connection(LoadConnection, host, int(port))
        connections.append(connection)
    return connections


async def closed_loop(address: str, requests: Sequence[bytes], *, connections: int) -> Loaded:
    """Send everything over some connections, each request when the one before it is answered.

    This gives the highest rate that the server carries.
    """
    open_connections = await _connect(address, connections)
    waiting: Iterator[bytes] = iter(requests)
    statuses: Counter[int] = Counter()
    samples: list[int] = []

    async def run(connection: LoadConnection) -> None:
        for request in waiting:
            started = time.perf_counter_ns()
            statuses[await connection.send(request)] += 1
            samples.append((time.perf_counter_ns() - started) // 1000)

    started = time.perf_counter()
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await asyncio.gather(*map(run, open_connections))
    seconds = time.perf_counter() - started
    for connection in open_connections:
        connection.close()
    return Loaded(statuses, seconds, samples)


async def open_loop(
    address: str, requests: Sequence[bytes], *, rate: float, connections: int
) -> Loaded:
    """Send each request at its own time, whether or not others are answered.

    An answer's time counts from when its request was meant to be sent.
    """
    idle = deque(await _connect(address, connections))
    all_connections = list(idle)
    statuses: Counter[int] = Counter()
    samples: list[int] = []
    start = time.perf_counter() + 0.1
    tasks: list[asyncio.Task[None]] = []
    for number, request in enumerate(requests):
        intended = start + number / rate
        wait_seconds = intended - time.perf_counter()
        if wait_seconds > 0:
            await asyncio.sleep(wait_seconds)
        if not idle:
            idle.extend(await _connect(address, connections))
            all_connections.extend(idle)
        sample = _sample(idle.popleft(), request, intended, idle, statuses, samples)
        tasks.append(asyncio.create_task(sample))
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await asyncio.gather(*tasks)
    seconds = time.perf_counter() - start
    for connection in all_connections:
        connection.close()
    return Loaded(statuses, seconds, samples)


async def _sample(
    connection: LoadConnection,
    request: bytes,
    intended: float,
    idle: deque[LoadConnection],
    statuses: Counter[int],
    samples: list[int],
) -> None:
    statuses[await connection.send(request)] += 1
    samples.append(round((time.perf_counter() - intended) * SECOND_MICROS))
    idle.append(connection)
