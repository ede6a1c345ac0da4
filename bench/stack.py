"""The real stack for measurements: local servers, fresh namespaces, real child processes."""

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
CHECK_SECONDS = 0.005
START_SECONDS_MAX = 60.0
ROOT = Path(__file__).parent.parent

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BenchNamespace:
    """One namespace of the stack, with its topics and schemas.

    Measurements in two namespaces share no state.
    """

    name: str
    addresses: Addresses
    catalog: Catalog
    partitions: int

    @property
    def kafka(self) -> dict[str, str]:
        """The settings of a Kafka client."""
        return {"bootstrap.servers": self.addresses.kafka}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a child process needs."""
        code = [str(Path(consentry.__file__).parent.parent), str(ROOT)]
        return {
            "CONSENTRY_KAFKA_BOOTSTRAP": self.addresses.kafka,
            "CONSENTRY_REDIS_URL": self.addresses.redis_url,
            "CONSENTRY_REGISTRY_URL": self.addresses.registry_url,
            "CONSENTRY_PROFILE": PROFILE,
            "CONSENTRY_NAMESPACE": self.name,
            "CONSENTRY_LOG_FORMAT": "json",
            "PYTHONPATH": os.pathsep.join(code),
        }

    def topic(self, name: str) -> str:
        """Return the broker's name of one of our topics."""
        return topic_name(self.name, name)

    def events(self) -> int:
        """Return the number of events in the log."""
        admin = AdminClient(client_config(self.kafka, "consentry-bench"))
        topic = self.topic(MEMBER_EVENTS)
        partitions = [(topic, partition) for partition in range(self.partitions)]
        return sum(end_offsets(admin, partitions).values())

    def add_topic(self, name: str) -> str:
        """Create a topic with the settings of member-events; return its name on the broker."""
        full_name = self.topic(name)
        topic = NewTopic(
            full_name,
            num_partitions=self.partitions,
            replication_factor=REPLICAS[PROFILE],
            config=topics()[MEMBER_EVENTS].config_for(PROFILE),
        )
        admin = AdminClient(client_config(self.kafka, "consentry-bench"))
        admin.create_topics([topic], request_timeout=15)[full_name].result()
        return full_name

    def produce(self, topic: str, work: Workload) -> None:
        """Send everything with an idempotent producer, as fast as possible.

        Raises CannotMeasure if the broker does not take all of it.
        """
        failed: list[str] = []

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error.str())

        config: dict[str, Any] = {
            **producer_config(self.kafka, "consentry-bench"),
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "on_delivery": note,
        }
        producer = Producer(config)
        for key, value in zip(work.keys, work.values, strict=True):
            producer.produce(topic, value, key)
        waiting = producer.flush(120)
        if waiting or failed:
            raise CannotMeasure(
                f"The broker did not take {waiting or len(failed)} of {len(work.keys)} events."
            )


def open_namespace(addresses: Addresses, namespace: str) -> BenchNamespace:
    """Create a namespace, with its topics as declared and its schemas registered."""
    kafka = {"bootstrap.servers": addresses.kafka}
    plan = plan_topics(kafka, namespace=namespace, profile=PROFILE)
    list(apply_topics(kafka, plan, profile=PROFILE))
    registry = HttpRegistry(addresses.registry_url)
    register_all(registry, namespace)
    admin = AdminClient(client_config(kafka, "consentry-bench"))
    partitions = partition_count(admin, topic_name(namespace, MEMBER_EVENTS))
    return BenchNamespace(namespace, addresses, load_catalog(registry, namespace), partitions)


class Program:
    """A child process whose output is read while it runs; JSON lines stand among its lines.

    Ends with the `with` block, or with this process.
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
        """The process id."""
        return self._child.pid

    def check_alive(self) -> None:
        """Raise CannotMeasure, with the end of its output, if it has ended."""
        if self._child.poll() is not None:
            lines = self._log.read_text(errors="replace").splitlines()
            tail = "\n".join(lines[-15:])
            raise CannotMeasure(
                f"{self.name} ended with exit status {self._child.returncode}:\n{tail}"
            )

    def wait_for(self, event: str, *, timeout_seconds: float = START_SECONDS_MAX) -> dict[str, Any]:
        """Return the first line with this `event`. Raises CannotMeasure if it does not come."""

        def find_line() -> dict[str, Any] | None:
            for line in self.lines():
                if line.get("event") == event:
                    return line
            return None

        return self.wait_until(find_line, f"say {event!r}", timeout_seconds=timeout_seconds)

    def wait_until(
        self,
        check: Callable[[], Result | None],
        action: str,
        *,
        timeout_seconds: float,
        every: float = CHECK_SECONDS,
    ) -> Result:
        """Call `check` again and again until it returns a result, and return that.

        `action` names in an error what the program did not do. Raises CannotMeasure after the time,
        or if the program ends.
        """
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until:
            has_ended = self._child.poll() is not None
            result = check()
            if result is not None:
                return result
            if has_ended:
                self.check_alive()
            time.sleep(every)
        raise CannotMeasure(f"{self.name} did not {action} within {timeout_seconds:.0f} s.")

    def lines(self) -> list[dict[str, Any]]:
        """Return every JSON object that the program has written so far, one from each line."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole_lines, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole_lines) + len(newline)
        for line in whole_lines.splitlines():
            if line.startswith(b"{"):
                self._lines.append(json.loads(line))
        return self._lines


def processor(namespace: BenchNamespace, directory: Path) -> Program:
    """Return the processor as an operator starts it."""
    command = [_script(), "processor"]
    return Program("processor", command, directory=directory, environment=namespace.environment)


def trainer(namespace: BenchNamespace, directory: Path, *, journal: Path) -> Program:
    """Return the reference trainer over an empty data set.

    It writes into the journal when each record and control arrived.
    """
    dataset = directory / "dataset"
    dataset.mkdir()
    command = [_script(), "trainer", "--dataset", str(dataset), "--name", "bench"]
    command += ["--every", "0", "--journal", str(journal)]
    return Program("trainer", command, directory=directory, environment=namespace.environment)


def wait_until_ready(program: Program) -> None:
    """Return when the program's readiness probe says yes. Raises CannotMeasure."""
    address = program.wait_for(program.name)["metrics"]

    def is_ready() -> bool | None:
        try:
            with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return None

    program.wait_until(is_ready, "become ready", timeout_seconds=START_SECONDS_MAX, every=0.05)


def metrics_text(program: Program) -> str:
    """Return the present text of the program's metrics endpoint."""
    address = program.wait_for(program.name)["metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def logged_at(line: Mapping[str, Any]) -> float:
    """Return the time of a log line, in seconds since 1970."""
    return datetime.fromisoformat(str(line["timestamp"])).timestamp()


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU time that each process has used so far, user and system."""
    seconds: dict[str, float] = {}
    for name, pid in processes.items():
        times = psutil.Process(pid).cpu_times()
        seconds[name] = times.user + times.system
    return seconds


def cpu_per_million(
    before: Mapping[str, float], after: Mapping[str, float], events: int
) -> dict[str, float]:
    """Return the CPU seconds that each process used per million events."""
    costs: dict[str, float] = {}
    for name in before:
        used = after[name] - before[name]
        costs[name] = round(used * 1_000_000 / events, 2)
    return costs


def _script() -> str:
    return str(Path(sys.executable).parent / "consentry")
