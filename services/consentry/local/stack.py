"""The local stack: a real Kafka, Redis (or Valkey) and schema registry, as child processes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import psutil

from consentry.local.artifacts import Progress, fetch, load_lock, unpack
from consentry.local.bringup import START_SECONDS_MAX, Bringup, Child, last_lines
from consentry.local.child import Spawner, end
from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.exclusive import try_lock
from consentry.local.ports import free_ports, is_free
from consentry.local.services import (
    KAFKA,
    REDIS,
    REGISTRY,
    KafkaBroker,
    RedisServer,
    SchemaRegistry,
    Service,
    find_redis,
)
from consentry.local.state import (
    RUNNING,
    STARTING,
    Addresses,
    ProcessIdentity,
    StackState,
    clear_stale_state,
    load_state,
    log_path,
    state_directory,
    state_path,
    write_state,
)

STOP_PATIENCE_SECONDS = 15.0
STOP_ORDER = (REGISTRY, REDIS, KAFKA)
POLL_SECONDS = 0.2


class LocalStack:
    """The local stack in `<directory>/local`; at most one runs there at a time.

    `with LocalStack(...) as addresses` returns when all three services have answered real requests,
    and ends them with the block. They also end when this process dies, in whatever way: at once on
    Linux, by the next start elsewhere. Data outlives the stack unless `ephemeral`. Addresses stay
    the same from run to run while the ports are free.

    `report` is called with lines for a person, from several threads. Errors are LocalStackError.
    Processes must not share one; `stop_service` and `start_service` must not be called at the same
    time for one service.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cache: Path,
        ephemeral: bool = False,
        repository: str | None = None,
        report: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        cancelled: threading.Event | None = None,
        start_seconds_max: float = START_SECONDS_MAX,
    ) -> None:
        self._directory = directory.absolute()
        self._cache = cache.absolute()
        self._ephemeral = ephemeral
        self._repository = repository
        self._report = report or (lambda line: None)
        self._progress = progress
        self._cancelled = cancelled or threading.Event()
        self._start_seconds_max = start_seconds_max
        self._abort = threading.Event()
        self._lock = threading.Lock()  # guards what the threads that bring services up write
        self._lock_file: int | None = None
        self._spawner: Spawner | None = None
        self._state: StackState | None = None
        self._services: dict[str, Service] = {}
        self._ports: dict[str, tuple[int, ...]] = {}
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Addresses:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def processes(self) -> dict[str, int]:
        """The process ids of the local stack's services that run now, by name."""
        return {name: child.pid for name, child in self._children.items() if child.poll() is None}

    @property
    def addresses(self) -> Addresses:
        """The local stack's addresses. Raises LocalStackError while it is not up."""
        if self._state is None or self._state.addresses is None:
            raise LocalStackError(
                "The local stack is not up.", code="local.not_up", fix="call start() first"
            )
        return self._state.addresses

    def start(self) -> Addresses:
        """Start the local stack, return its addresses; on any error nothing is left running."""
        self._claim()
        try:
            data = self._prepare_state()
            self._services = {service.name: service for service in self._assemble(data)}
            self._ports = self._choose_ports(data)
            self._spawner = Spawner()
            self._bring_all_up()
            return self._announce(data)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the local stack, gently for a bounded time; may be called in any state."""
        self._abort.set()
        running = [self._children[name] for name in STOP_ORDER if name in self._children]
        for child in running:
            if child.poll() is None:
                child.terminate()
        for child in running:
            end(child, patience_seconds=STOP_PATIENCE_SECONDS)
        self._children.clear()
        if self._spawner is not None:
            self._spawner.close()
            self._spawner = None
        if self._state is not None:
            if self._ephemeral:
                shutil.rmtree(self._state.data_directory, ignore_errors=True)
            state_path(self._directory).unlink(missing_ok=True)
            self._state = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def stop_service(self, name: str, *, patience_seconds: float = STOP_PATIENCE_SECONDS) -> None:
        """End one service of the local stack, gently; the others go on.

        Does nothing if it has ended already.
        """
        child = self._children.pop(name, None)
        if child is not None:
            if child.poll() is None:
                child.terminate()
            end(child, patience_seconds=patience_seconds)

    def start_service(self, name: str) -> None:
        """Start one service of the local stack again, on its port and with its data.

        It was stopped or has died.
        """
        process_id = self.processes.get(name)
        if process_id is not None:
            raise LocalStackError(
                f"The local {name} runs already, as process {process_id}.",
                code="local.service_runs",
                fix=f"stop it first: stop_service({name!r})",
            )
        self._bring_up(self._services[name], may_move=False)

    def failed_services(self) -> dict[str, str]:
        """Return the local services that died by themselves, with exit status and log's end."""
        reports: dict[str, str] = {}
        for name, child in self._children.items():
            if child.poll() is None:
                continue
            log = log_path(self._directory, name)
            title = f"{name} ended with exit status {child.returncode}; the end of its log {log}:"
            reports[name] = "\n".join([title, *last_lines(log)])
        return reports

    def _claim(self) -> None:
        local = state_directory(self._directory)
        (local / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_file = try_lock(local / "lock")
        if self._lock_file is None:
            raise already_running(self._directory)
        self._abort.clear()
        clear_stale_state(self._directory, self._report)

    def _prepare_state(self) -> Path:
        local = state_directory(self._directory)
        if self._ephemeral:
            data = Path(tempfile.mkdtemp(prefix="ephemeral-", dir=local))
        else:
            data = local / "data"
            data.mkdir(exist_ok=True, mode=0o700)
        self._state = StackState(
            phase=STARTING,
            supervisor=ProcessIdentity.of(os.getpid()),
            ephemeral=self._ephemeral,
            data_directory=str(data),
        )
        write_state(self._directory, self._state)
        return data

    def _assemble(self, data: Path) -> tuple[Service, ...]:
        if ":" in str(self._cache):
            raise LocalStackError(
                f"The cache directory {self._cache} has a colon in its path, which Java reads as "
                "the end of a path.",
                code="local.cache_path",
                fix="choose another with --cache-dir (CONSENTRY_CACHE_DIR)",
            )
        lock = load_lock()
        paths = fetch(
            lock.everything,
            cache=self._cache,
            repository=self._repository,
            report=self._report,
            progress=self._progress,
            cancelled=self._cancelled,
        )
        application = unpack(
            lock.registry, cache=self._cache, report=self._report, cancelled=self._cancelled
        )
        return (
            KafkaBroker(jars=paths[: len(lock.kafka)], directory=data / KAFKA),
            RedisServer(binary=find_redis(), directory=data / REDIS),
            SchemaRegistry(application=application, directory=data / REGISTRY),
        )

    def _choose_ports(self, data: Path) -> dict[str, tuple[int, ...]]:
        """Return the ports of the last run if all of them are still free, else new ones.

        So an address that was exported stays right.
        """
        try:
            saved = json.loads((data / "ports.json").read_text("utf-8"))
            earlier: dict[str, tuple[int, ...]] = {}
            for name in self._services:
                earlier[name] = tuple(int(port) for port in saved[name])
            every_port = itertools.chain.from_iterable(earlier.values())
            if all(is_free(port) for port in every_port):
                return earlier
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a first run, or a file that a person changed: new ports serve as well
        count = sum(service.port_count for service in self._services.values())
        new_ports = iter(free_ports(count))
        return {
            name: tuple(itertools.islice(new_ports, service.port_count))
            for name, service in self._services.items()
        }

    def _bring_all_up(self) -> None:
        for name in self._services:
            log = log_path(self._directory, name)
            if log.exists():
                log.replace(log.with_suffix(".log.1"))
        with ThreadPoolExecutor(len(self._services), thread_name_prefix="consentry-local") as pool:
            tasks: list[Future[None]] = []
            for service in self._services.values():
                tasks.append(pool.submit(self._bring_up, service, may_move=True))
            try:
                self._await_all(tasks)
            except BaseException:
                self._abort.set()  # before the pool waits for its threads
                raise

    def _await_all(self, tasks: list[Future[None]]) -> None:
        pending = set(tasks)
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
            if self._cancelled.is_set():
                raise Cancelled

    def _bring_up(self, service: Service, *, may_move: bool) -> None:
        if self._spawner is None:
            raise LocalStackError(
                "The local stack is not up.", code="local.not_up", fix="call start() first"
            )
        bringup = Bringup(
            spawner=self._spawner,
            log_path=log_path(self._directory, service.name),
            abort=self._abort,
            report=self._report,
            on_spawn=self._remember,
            start_seconds_max=self._start_seconds_max,
        )
        child, ports = bringup.bring_up(service, self._ports[service.name], may_move=may_move)
        with self._lock:
            self._children[service.name] = child
            self._ports[service.name] = ports

    def _remember(self, name: str, child: Child) -> None:
        """Write a child into the state at once, so that it is ended even after a killed start."""
        try:
            identity = ProcessIdentity.of(child.pid)
        except psutil.NoSuchProcess:
            return  # it has died already, and the thread that waits for it will report why
        with self._lock:
            if self._state is not None:
                services = {**self._state.services, name: identity}
                self._state = replace(self._state, services=services)
                write_state(self._directory, self._state)

    def _announce(self, data: Path) -> Addresses:
        addresses = Addresses(
            kafka=self._address(KAFKA),
            redis_url=self._address(REDIS),
            registry_url=self._address(REGISTRY),
        )
        (data / "ports.json").write_text(json.dumps(self._ports), "utf-8")
        with self._lock:
            if self._state is None:
                raise Cancelled
            self._state = replace(self._state, phase=RUNNING, addresses=addresses)
            write_state(self._directory, self._state)
        return addresses

    def _address(self, name: str) -> str:
        return self._services[name].address(self._ports[name])


def already_running(directory: Path) -> LocalStackError:
    """Return the error for a second start of the local stack in one directory."""
    try:
        state = load_state(directory)
    except LocalStackError:
        state = None
    by = f", by process {state.supervisor.pid}" if state is not None else ""
    return LocalStackError(
        f"A local stack runs in {directory} already{by}.",
        code="local.already_running",
        fix=f"use it (consentry local status --dir {directory}), end it (consentry local down "
        f"--dir {directory}), or give this one a directory of its own with --dir",
    )
