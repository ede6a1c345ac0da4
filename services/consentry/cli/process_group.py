"""Services as children of a command: a processor, trainers, started again when somebody kills
them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from consentry.domain.errors import Unavailable
from consentry.local.child import Launch, Spawner, end
from consentry.local.ports import free_ports


@dataclass(slots=True)
class ServiceProcess:
    """One child: how it is started, where it answers, and the process that runs now."""

    name: str
    launch: Launch
    address: str
    log: Path
    child: subprocess.Popen[bytes] | None = None
    restarts: int = 0


class ProcessGroup:
    """Starts the children, watches over them, and ends them; they also end when this process
    does.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._say = say
        self._spawner = Spawner()
        self._workers: dict[str, ServiceProcess] = {}
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._keep_alive, name="process-group", daemon=True)

    def add(self, name: str, arguments: Sequence[str], **environment: str) -> ServiceProcess:
        """Start one more `consentry …` under `name`."""
        [port] = free_ports(1)
        command = [sys.executable, "-c", "from consentry.cli import main; main()", *arguments]
        settings = self._environment | environment | {"CONSENTRY_METRICS_PORT": str(port)}
        log = self._directory / f"{name}.log"
        launch = Launch(command=command, directory=self._directory, environment=settings)
        worker = ServiceProcess(name, launch, f"127.0.0.1:{port}", log)
        self._start(worker)
        self._workers[name] = worker
        if not self._watch.is_alive():
            self._watch.start()
        return worker

    @property
    def workers(self) -> list[ServiceProcess]:
        """All of them, in the order in which they were added."""
        return list(self._workers.values())

    def pid(self, name: str) -> int:
        """The process that runs now under `name`."""
        child = self._workers[name].child
        assert child is not None
        return child.pid

    def await_ready(self, name: str, *, timeout_seconds: float) -> None:
        """Return once the child says that it is ready. Raises Unavailable with the end of its
        log.
        """
        worker, until = self._workers[name], monotonic() + timeout_seconds
        while not self.ask(name, "/readyz").get("ok"):
            if monotonic() > until:
                raise Unavailable(
                    f"{name} was not ready after {timeout_seconds:.0f} s. The end of its log: "
                    f"{_tail(worker.log)}",
                    code="service.not_ready",
                    fix=f"read {worker.log}",
                )
            self._stopping.wait(0.05)

    def ask(self, name: str, page: str) -> dict[str, Any]:
        """What a child answers as JSON; empty while it does not."""
        try:
            answer = urllib.request.urlopen(
                f"http://{self._workers[name].address}{page}", timeout=5
            )
        except urllib.error.HTTPError as refused:
            answer = refused
        except OSError:
            return {}
        with answer:
            try:
                return dict(json.load(answer))
            except ValueError:
                return {}

    def metrics(self, name: str) -> str:
        """A child's metrics as text; empty while it does not answer."""
        try:
            with urllib.request.urlopen(
                f"http://{self._workers[name].address}/metrics", timeout=5
            ) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def stop(self) -> None:
        """End all children."""
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join(timeout=5)
        children = [worker.child for worker in self._workers.values() if worker.child is not None]
        for child in children:
            child.terminate()
        for child in children:
            end(child, patience_seconds=10)
        self._spawner.close()

    def _start(self, worker: ServiceProcess) -> None:
        with worker.log.open("ab") as log:
            worker.child = self._spawner.spawn(worker.launch, log)

    def _keep_alive(self) -> None:
        while not self._stopping.wait(0.2):
            for worker in list(self._workers.values()):
                status = worker.child.poll() if worker.child is not None else None
                if status is None or self._stopping.is_set():
                    continue
                worker.restarts += 1
                if worker.restarts > 20:
                    self._say(
                        f"{worker.name} ended 20 times; it is not started again. See {worker.log}"
                    )
                    worker.child = None
                    continue
                self._say(f"{worker.name} ended with status {status}; it is started again")
                self._start(worker)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " | ".join(line[:300] for line in lines[-3:]) or "empty"
