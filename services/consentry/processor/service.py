"""The processor's worker process: Faust, and the loop that member events go through.

Faust owns lifecycle, signals and low-rate agents; the hot path runs beside it on its own thread.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import faust
import structlog
from mode import Service

from consentry.domain.errors import ConsentryError
from consentry.processor.frontiers import FrontierThread
from consentry.processor.hotpath import HotPath

STALL_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0
_LOG = structlog.get_logger(__name__)

FAUST_SETTINGS: Final[dict[str, Any]] = {
    # docs/decisions/0001 has the reason for each of these.
    "broker_commit_every": 10**9,
    "broker_commit_interval": 1.0,
    "broker_max_poll_records": 500,
    "broker_session_timeout": 10,
    "broker_heartbeat_interval": 3,
    "consumer_auto_offset_reset": "earliest",
    "processing_guarantee": "at_least_once",
    "stream_wait_empty": False,
    "topic_allow_declare": False,
    "topic_disable_leader": True,
    "web_enabled": False,
    "value_serializer": "raw",
    "key_serializer": "raw",
    "store": "memory://",
}


class HotPathService(Service):
    """The processor's loop as a Faust service, on a thread of its own.

    If that ends by itself, the whole worker ends with a status that is not 0.
    """

    def __init__(self, hot_path: HotPath, frontiers: FrontierThread, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._hot_path = hot_path
        self._frontiers = frontiers
        self._failure: BaseException | None = None
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="hot-path", daemon=True)

    def _run(self) -> None:
        try:
            self._hot_path.run()
        except BaseException as error:  # noqa: BLE001 - whatever ended it, _watch ends the process
            self._failure = error
            if isinstance(error, ConsentryError):
                _LOG.critical("hot_path_ended", code=error.code, detail=str(error))
            else:
                _LOG.critical("hot_path_ended", exc_info=error)

    async def on_start(self) -> None:
        """Start both threads of the processor."""
        self._thread.start()
        self._frontiers.start()

    @Service.task
    async def _watch(self) -> None:
        """End the process when a thread died or stands still.

        A supervisor starts it anew, and nothing is lost.
        """
        while not self.should_stop:
            await self.sleep(0.5)
            if self._is_ending:
                return
            if not self._thread.is_alive() and not self.should_stop:
                _LOG.critical("worker_ends", why="the hot path ended")
                os._exit(1)
            if not self._frontiers.is_alive and not self.should_stop:
                _LOG.critical("worker_ends", why="the frontier thread ended")
                os._exit(1)
            if monotonic() - self._hot_path.progress_at > STALL_SECONDS:
                _LOG.critical("worker_ends", why=f"no progress for {STALL_SECONDS:.0f} s")
                os._exit(1)

    def end(self) -> None:
        """Let the processor finish its batch, and end its process soon, whatever else goes on.

        May be called again. Faust alone would take too long: with the broker away it waits a minute
        for it, and when it is told to end while it still starts, it may wait for ever. A supervisor
        would have killed the worker by then.
        """
        if self._is_ending:
            return
        self._is_ending = True
        self._hot_path.stop()
        last_resort = threading.Timer(STOP_SECONDS, self._exit)
        last_resort.daemon = True
        last_resort.start()

    def _exit(self) -> None:
        os._exit(1 if self._thread.is_alive() else 0)

    async def on_stop(self) -> None:
        """Let the processor finish its batch; the rest of the shutdown gets a bounded time."""
        self.end()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._thread.join, STOP_SECONDS)
        await loop.run_in_executor(None, self._frontiers.stop)


def build_app(*, kafka: dict[str, str], app_id: str, data_directory: str) -> faust.App:
    """Return the Faust app that the processor runs in; it consumes nothing by itself.

    It does so only for agents that are added.
    """
    addresses = kafka["bootstrap.servers"].split(",")
    brokers = [f"kafka://{address.strip()}" for address in addresses]
    settings = dict(FAUST_SETTINGS)
    credentials = _credentials(kafka)
    if credentials:
        settings["broker_credentials"] = credentials
    app: faust.App = faust.App(app_id, broker=brokers, datadir=data_directory, **settings)
    return app


def _credentials(kafka: dict[str, str]) -> Any:
    """Return the same security settings in Faust's form; None for plain text."""
    protocol = kafka.get("security.protocol", "PLAINTEXT")
    if protocol == "PLAINTEXT":
        return None
    import ssl  # noqa: PLC0415 - only where TLS is used

    context = ssl.create_default_context(cafile=kafka.get("ssl.ca.location"))
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    return faust.SASLCredentials(
        username=kafka["sasl.username"],
        password=kafka["sasl.password"],
        mechanism=kafka["sasl.mechanism"],
        ssl_context=context,
    )


class _Worker(faust.Worker):
    """Faust's worker, except that a signal reaches our service at once."""

    def _schedule_shutdown(self, signal: Any) -> None:
        for service in self.services:
            if isinstance(service, HotPathService):
                service.end()
        super()._schedule_shutdown(signal)


def run_worker(app: faust.App, services: list[Callable[[], Service]]) -> int:
    """Run the processor's Faust app until SIGINT or SIGTERM; return the exit status."""
    # Faust draws a spinner on its standard output, also when that is a file.
    nowhere = io.StringIO()
    worker = _Worker(
        app,
        *[service() for service in services],
        loglevel="WARNING",
        override_logging=False,
        redirect_stdouts=False,
        quiet=True,
        stdout=nowhere,
        stderr=nowhere,
    )
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
