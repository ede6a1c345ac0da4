"""Services that a command starts as its children: watched, started again if killed, ended."""

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

RESTARTS_MAX = 20


@dataclass(slots=True)
class ServiceProcess:
    """A service that a command runs as its child: its start, address, log, and process now."""

    name: str
    launch: Launch
    address: str
    log: Path
    child: subprocess.Popen[bytes] | None = None
    restarts: int = 0


class ProcessGroup:
    """The services that a command runs as its children; it starts them again when they end.

    They end with this process.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._say = say
        self._spawner = Spawner()
        self._children: dict[str, ServiceProcess] = {}
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._keep_alive, name="process-group", daemon=True)

    def add(self, name: str, arguments: Sequence[str], **environment: str) -> ServiceProcess:
        """Start one more `consentry …` service as a child of this command, under `name`."""
        [port] = free_ports(1)
        command = [sys.executable, "-c", "from consentry.cli import main; main()", *arguments]
        settings = self._environment | environment | {"CONSENTRY_METRICS_PORT": str(port)}
        log = self._directory / f"{name}.log"
        launch = Launch(command=command, directory=self._directory, environment=settings)
        service = ServiceProcess(name, launch, f"127.0.0.1:{port}", log)
        self._start(service)
        self._children[name] = service
        if not self._watch.is_alive():
            self._watch.start()
        return service

    @property
    def children(self) -> list[ServiceProcess]:
        """All services that this command runs, in the order in which they were added."""
        return list(self._children.values())

    def pid(self, name: str) -> int:
        """Return the id of the process that runs now for the service `name`."""
        child = self._children[name].child
        assert child is not None
        return child.pid

    def send_signal(self, name: str, number: int) -> None:
        """Send a signal to the process that runs now for the service `name`."""
        child = self._children[name].child
        assert child is not None
        child.send_signal(number)

    def await_ready(self, name: str, *, timeout_seconds: float) -> None:
        """Return once the command's child service is ready. Raises Unavailable if it is not.

        The error has the end of its log.
        """
        service, until = self._children[name], monotonic() + timeout_seconds
        while not self.ask(name, "/readyz").get("ok"):
            if monotonic() > until:
                raise Unavailable(
                    f"{name} was not ready after {timeout_seconds:.0f} s. The end of its log: "
                    f"{_tail(service.log)}",
                    code="service.not_ready",
                    fix=f"read {service.log}",
                )
            self._stopping.wait(0.05)

    def ask(self, name: str, page: str) -> dict[str, Any]:
        """Return the JSON that a child service answers; empty while it does not answer."""
        try:
            answer = urllib.request.urlopen(
                f"http://{self._children[name].address}{page}", timeout=5
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
        """Return a child service's metrics as text; empty while it does not answer."""
        try:
            with urllib.request.urlopen(
                f"http://{self._children[name].address}/metrics", timeout=5
            ) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def stop(self) -> None:
        """End all services that this command runs as its children."""
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join(timeout=5)
        children = []
        for service in self._children.values():
            if service.child is not None:
                children.append(service.child)
        for child in children:
            child.terminate()
        for child in children:
            end(child, patience_seconds=10)
        self._spawner.close()

    def _start(self, service: ServiceProcess) -> None:
        with service.log.open("ab") as log:
            service.child = self._spawner.spawn(service.launch, log)

    def _keep_alive(self) -> None:
        while not self._stopping.wait(0.2):
            for service in list(self._children.values()):
                if service.child is None:
                    continue
                status = service.child.poll()
                if status is None or self._stopping.is_set():
                    continue
                service.restarts += 1
                if service.restarts > RESTARTS_MAX:
                    self._say(
                        f"{service.name} ended {RESTARTS_MAX} times; it is not started again. "
                        f"See {service.log}"
                    )
                    service.child = None
                    continue
                self._say(f"{service.name} ended with status {status}; it is started again")
                self._start(service)


def _tail(log: Path) -> str:
    lines: list[str] = []
    if log.exists():
        lines = log.read_text(errors="replace").splitlines()
    return " | ".join(line[:300] for line in lines[-3:]) or "empty"
