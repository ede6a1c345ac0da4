"""What is measured, as it really runs: the local stack, a fresh namespace a measurement, real child
processes.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import consentry
from bench.events import Workload
from bench.figures import CannotMeasure
from consentry.kafka.clients import client_config, end_offsets, partition_count, producer_config
from consentry.kafka.schema_registry import HttpRegistry
from consentry.kafka.topics import REPLICAS, apply_topics, plan_topics
from consentry.local.child import Launch, Spawner, end
from consentry.local.state import Addresses
from consentry.wire.catalog import Catalog, load_catalog, register_all
from consentry.wire.schemas import MEMBER_EVENTS, topic_name, topics

PROFILE = "local"
LOOK_SECONDS = 0.005
START_SECONDS_MAX = 60.0
ROOT = Path(__file__).parent.parent

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class BenchNamespace:
    """One namespace of the stack, with its topics and schemas: measurements in two of them share no
    state.
    """

    namespace: str
    addresses: Addresses
    catalog: Catalog
    partitions: int

    @property
    def kafka(self) -> dict[str, str]:
        """Settings of a Kafka client."""
        return {"bootstrap.servers": self.addresses.kafka}

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to find everything."""
        code = [str(Path(consentry.__file__).parent.parent), str(ROOT)]
        return {
            "CONSENTRY_KAFKA_BOOTSTRAP": self.addresses.kafka,
            "CONSENTRY_REDIS_URL": self.addresses.redis_url,
            "CONSENTRY_REGISTRY_URL": self.addresses.registry_url,
            "CONSENTRY_PROFILE": PROFILE,
            "CONSENTRY_NAMESPACE": self.namespace,
            "CONSENTRY_LOG_FORMAT": "json",
            "PYTHONPATH": os.pathsep.join(code),
        }

    def topic(self, name: str) -> str:
        """The broker's name of one of our topics."""
        return topic_name(self.namespace, name)

    def events(self) -> int:
        """How many events the log holds."""
        admin = AdminClient(client_config(self.kafka, "consentry-bench"))
        topic = self.topic(MEMBER_EVENTS)
        return sum(
            end_offsets(
                admin, [(topic, partition) for partition in range(self.partitions)]
            ).values()
        )

    def add_topic(self, name: str) -> str:
        """One more topic, declared as member-events is; its name on the broker."""
        full, like = self.topic(name), topics()[MEMBER_EVENTS].config_for(PROFILE)
        new = NewTopic(
            full, num_partitions=self.partitions, replication_factor=REPLICAS[PROFILE], config=like
        )
        admin = AdminClient(client_config(self.kafka, "consentry-bench"))
        admin.create_topics([new], request_timeout=15)[full].result()
        return full

    def produce(self, topic: str, work: Workload) -> None:
        """Send everything with an idempotent producer, as fast as it goes. Raises CannotMeasure."""
        failed: list[str] = []

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error.str())

        producer = Producer(
            producer_config(self.kafka, "consentry-bench")
            | {
                "queue.buffering.max.messages": 1_000_000,
                "delivery.report.only.error": True,
                "on_delivery": note,
            }
        )
        for key, value in zip(work.keys, work.values, strict=True):
            producer.produce(topic, value, key)
        left = producer.flush(120)
        if left or failed:
            raise CannotMeasure(
                f"The broker did not take {left or len(failed)} of {len(work.keys)} events."
            )


def open_place(addresses: Addresses, namespace: str) -> BenchNamespace:
    """Make a namespace: topics as declared, schemas registered."""
    kafka = {"bootstrap.servers": addresses.kafka}
    plan = plan_topics(kafka, namespace=namespace, profile=PROFILE)
    list(apply_topics(kafka, plan, profile=PROFILE))
    registry = HttpRegistry(addresses.registry_url)
    register_all(registry, namespace)
    admin = AdminClient(client_config(kafka, "consentry-bench"))
    partitions = partition_count(admin, topic_name(namespace, MEMBER_EVENTS))
    return BenchNamespace(namespace, addresses, load_catalog(registry, namespace), partitions)


class Program:
    """A child process whose output, JSON lines among others, is read while it runs.

    Ends with the block, or with us.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._launch = Launch(command=command, directory=directory, environment=environment)
        self._log = directory / f"{name}.log"
        self._read = 0
        self._lines: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._spawner = Spawner()
        with self._log.open("wb") as log:
            self._child: Popen[bytes] = self._spawner.spawn(self._launch, log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child.poll() is None:
            self._child.terminate()
        end(self._child, patience_seconds=10)
        self._spawner.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def check_alive(self) -> None:
        """Raise CannotMeasure, with the end of its output, if it has ended."""
        if self._child.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise CannotMeasure(
                f"{self.name} ended with exit status {self._child.returncode}:\n{tail}"
            )

    def wait_for(self, event: str, *, timeout_seconds: float = START_SECONDS_MAX) -> dict[str, Any]:
        """The first line whose `event` is this one. Raises CannotMeasure if it does not come."""

        def look() -> dict[str, Any] | None:
            return next((line for line in self.lines() if line.get("event") == event), None)

        return self.wait_until(look, f"say {event!r}", timeout_seconds=timeout_seconds)

    def wait_until(
        self,
        look: Callable[[], Found | None],
        what: str,
        *,
        timeout_seconds: float,
        every: float = LOOK_SECONDS,
    ) -> Found:
        """What `look` finds, asked again and again while the program lives.

        Raises CannotMeasure after the time.
        """
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until:
            found = look()
            if found is not None:
                return found
            if self._child.poll() is not None and (found := look()) is not None:
                return found
            self.check_alive()
            time.sleep(every)
        raise CannotMeasure(f"{self.name} did not {what} within {timeout_seconds:.0f} s.")

    def lines(self) -> list[dict[str, Any]]:
        """Every JSON object that it has written so far, a line each."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            if line.startswith(b"{"):
                self._lines.append(json.loads(line))
        return self._lines


def processor(place: BenchNamespace, directory: Path) -> Program:
    """The processor, as an operator starts it."""
    return Program(
        "processor", [_script(), "processor"], directory=directory, environment=place.environment
    )


def trainer(place: BenchNamespace, directory: Path, *, journal: Path) -> Program:
    """The reference trainer over an empty data set, writing when each record and control
    arrived.
    """
    dataset = directory / "dataset"
    dataset.mkdir()
    arguments = [
        "--dataset",
        str(dataset),
        "--name",
        "bench",
        "--every",
        "0",
        "--journal",
        str(journal),
    ]
    command = [_script(), "trainer", *arguments]
    return Program("trainer", command, directory=directory, environment=place.environment)


def wait_until_ready(program: Program) -> None:
    """Return once the program's readiness probe says yes. Raises CannotMeasure."""
    address = program.wait_for(program.name)["metrics"]

    def look() -> bool | None:
        try:
            with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return None

    program.wait_until(look, "become ready", timeout_seconds=START_SECONDS_MAX, every=0.05)


def metrics_text(program: Program) -> str:
    """What the program's metrics endpoint says now."""
    address = program.wait_for(program.name)["metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def logged_at(line: Mapping[str, Any]) -> float:
    """When a log line was written, in seconds since 1970."""
    return datetime.fromisoformat(str(line["timestamp"])).timestamp()


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """CPU time that each process has used so far, user and system."""
    found = {}
    for name, pid in processes.items():
        times = psutil.Process(pid).cpu_times()
        found[name] = times.user + times.system
    return found


def cpu_per_million(
    before: Mapping[str, float], after: Mapping[str, float], events: int
) -> dict[str, float]:
    """CPU seconds that each process used per million events."""
    return {name: round((after[name] - before[name]) * 1_000_000 / events, 2) for name in before}


def _script() -> str:
    return str(Path(sys.executable).parent / "consentry")
