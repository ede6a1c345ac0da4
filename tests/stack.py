"""The real local stack and real processes on it: what the integration tests and the fault tests
share.

One stack serves a whole pytest session; every test gets a namespace of its own on it. Only
processes that were started here are ever signalled, each by its process id.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import redis
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from tests.sizes import PATIENCE

from consentry.domain.controls import (
    Control,
    OptIns,
    PauseBasis,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Reach,
    Regime,
    Scope,
    Terms,
)
from consentry.domain.errors import UndecodableEvent
from consentry.domain.events import (
    ConsentChanged,
    EventUnreadable,
    MemberErased,
    MemberEvent,
    MemberRelocated,
)
from consentry.domain.records import Record, fold
from consentry.domain.values import AgeBand, Choice, MemberId, Micros
from consentry.kafka.clients import client_config, producer_config, read_all, send
from consentry.kafka.schema_registry import HttpRegistry
from consentry.kafka.topics import apply_topics, plan_topics
from consentry.local.stack import LocalStack
from consentry.ops.clock import system_clock
from consentry.ops.health import HealthServer
from consentry.ops.metrics import Metrics
from consentry.table.redis_table import RedisTable
from consentry.trainer.client import Client
from consentry.wire.catalog import Catalog, load_catalog, register_all
from consentry.wire.controls import control_key, write_control
from consentry.wire.events import admit, read_event, write_event
from consentry.wire.messages import StoredMessage
from consentry.wire.partitions import partition_of
from consentry.wire.records import version_of, write_record
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, RECORDS, topic_name

PURPOSE: Final = "genai_training"
PARTITIONS: Final = 8
CONSENTRY: Final = Path(sys.executable).with_name("consentry")
ID_CHARACTERS: Final = "[A-Za-z0-9:_-]"

Found = TypeVar("Found")
ProducedEvent = ConsentChanged | MemberRelocated | MemberErased


def wait_for(
    look: Callable[[], Found], what: str, *, seconds: float = 20.0, every: float = 0.05
) -> Found:
    """What `look` finds, as soon as that is true; fails after `seconds`, saying `what` was waited
    for.
    """
    until = time.monotonic() + PATIENCE * seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {PATIENCE * seconds:.0f} s")
        time.sleep(every)


def cache_directory() -> Path:
    """The cache that all stacks of this computer share, so that downloads happen once."""
    told = os.environ.get("CONSENTRY_CACHE_DIR")
    return (
        Path(told)
        if told
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consentry"
    )


class SharedStack:
    """The session's one stack: started when first asked for, and as whole again after each
    fault.
    """

    def __init__(self) -> None:
        self._stack: LocalStack | None = None

    def get(self, directory: Callable[[], Path]) -> LocalStack:
        """The running stack, with every service up."""
        if self._stack is None:
            stack = LocalStack(directory(), cache=cache_directory(), ephemeral=True)
            stack.start()
            self._stack = stack
        self.mend()
        return self._stack

    def mend(self) -> None:
        """Bring up what a test took down."""
        if self._stack is not None:
            for name in ("kafka", "redis", "registry"):
                if name not in self._stack.processes:
                    self._stack.start_service(name)

    def stop(self) -> None:
        """End it; may be called again."""
        if self._stack is not None:
            self._stack.stop()
            self._stack = None


SHARED: Final = SharedStack()


def shared_stack(directory: Callable[[], Path]) -> Iterator[LocalStack]:
    """Body of the fixtures that hand out the session's stack."""
    yield SHARED.get(directory)
    SHARED.stop()


class Running:
    """A child process that we started: a processor or a trainer, logging JSON lines to a file of
    its own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._address = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def text(self) -> str:
        """All that it logged."""
        return self.log.read_text(errors="replace")

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Its structured log lines, of one event if named."""
        found: list[dict[str, Any]] = []
        for line in self.text().splitlines():
            if line.startswith("{"):
                try:
                    told = json.loads(line)
                except ValueError:
                    continue
                if not event or told.get("event") == event:
                    found.append(told)
        return found

    @property
    def address(self) -> str:
        """HOST:PORT of its metrics, from its log."""
        if not self._address:

            def look() -> str:
                assert self.is_running, (
                    f"it ended with {self.process.returncode}:\n{self.text()[-3000:]}"
                )
                return next(
                    (str(line["metrics"]) for line in self.lines() if "metrics" in line), ""
                )

            self._address = wait_for(look, f"the metrics address of {self.log.name}", seconds=40)
        return self._address

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages; status 0 while nothing answers."""
        try:
            with urllib.request.urlopen(
                f"http://{self.address}{path}", timeout=PATIENCE * 5
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def told(self, path: str) -> dict[str, Any]:
        """The JSON object of a page."""
        found: dict[str, Any] = json.loads(self.page(path)[1])
        return found

    def wait_ready(self, seconds: float = 40.0) -> Running:
        """Return once /readyz says so."""

        def look() -> bool:
            assert self.is_running, (
                f"it ended with {self.process.returncode}:\n{self.text()[-3000:]}"
            )
            return self.page("/readyz")[0] == 200

        wait_for(look, f"{self.log.name} ready", seconds=seconds)
        return self

    def wait_end(self, seconds: float = 40.0) -> int:
        """Its exit status; negative is the signal."""
        return self.process.wait(PATIENCE * seconds)

    def stop(self, seconds: float = 40.0) -> int:
        """Ask it to end, as an orchestrator would; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_end(seconds)

    def kill(self) -> None:
        """End it as by kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE * 10)

    def freeze(self) -> None:
        """Stop it in its tracks; everybody else goes on."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Make sure that it does not run any more."""
        if self.is_running:
            self.process.kill()
            self.process.wait(PATIENCE * 10)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 where there are none."""
        return sum(
            value
            for found, has, value in samples(self.page("/metrics")[1])
            if found == name and labels.items() <= has.items()
        )


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Every sample of Prometheus' text format: name, labels, value."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
        if match:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            found.append((match[1], labels, float(match[3])))
    return found


class World:
    """One namespace on the stack: topics applied and schemas registered, and whatever a test starts
    in it.
    """

    def __init__(self, stack: LocalStack, directory: Path, *, prepare: bool = True) -> None:
        self.stack = stack
        self.directory = directory
        self.namespace = f"t{uuid.uuid4().hex[:10]}"
        self.kafka = {"bootstrap.servers": stack.addresses.kafka, "security.protocol": "PLAINTEXT"}
        self.registry = HttpRegistry(stack.addresses.registry_url)
        self._catalog: Catalog | None = None
        self._producer: Producer | None = None
        self._running: list[Running] = []
        self._clients: list[Client] = []
        self._servers: list[HealthServer] = []
        if prepare:
            self.apply_topics()
            register_all(self.registry, self.namespace)

    # ---- the surroundings

    def apply_topics(self) -> None:
        """Create the topics as declared."""
        plan = plan_topics(self.kafka, namespace=self.namespace, profile="local")
        list(apply_topics(self.kafka, plan, profile="local"))

    @property
    def catalog(self) -> Catalog:
        """The schema ids of this namespace."""
        if self._catalog is None:
            self._catalog = load_catalog(self.registry, self.namespace)
        return self._catalog

    def topic(self, name: str) -> str:
        """A topic's name on the broker."""
        return topic_name(self.namespace, name)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a child process; names without CONSENTRY_."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("CONSENTRY_")
        }
        ours = {
            "KAFKA_BOOTSTRAP": self.stack.addresses.kafka,
            "REDIS_URL": self.stack.addresses.redis_url,
            "REGISTRY_URL": self.stack.addresses.registry_url,
            "PROFILE": "local",
            "NAMESPACE": self.namespace,
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
            "TABLE_MEMBERS": "10000",
        } | more
        return (
            kept | {"COLUMNS": "200"} | {f"CONSENTRY_{name}": value for name, value in ours.items()}
        )

    def redis(self) -> redis.Redis:
        """A connection of our own to the table's server; the caller closes it."""
        return redis.Redis.from_url(self.stack.addresses.redis_url, decode_responses=True)

    # ---- processes

    def cli(
        self, *arguments: str, seconds: float = 60.0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [str(CONSENTRY), *arguments],
            env=self.environment(**(environment or {})),
            capture_output=True,
            text=True,
            timeout=PATIENCE * seconds,
            check=False,
            cwd=self.directory,
        )

    def ok(self, *arguments: str, **more: Any) -> str:
        """Run one command that has to succeed; what it printed."""
        done = self.cli(*arguments, **more)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *arguments: str, name: str = "", **environment: str) -> Running:
        """Start a command that stays; ended with the test at the latest."""
        log = self.directory / f"{len(self._running):02}-{name or arguments[0]}.log"
        running = Running([str(CONSENTRY), *arguments], self.environment(**environment), log)
        self._running.append(running)
        return running

    def processor(self, worker_id: str = "w1", **environment: str) -> Running:
        """Start a processor. With the same worker id a killed one is replaced at once."""
        return self.start(
            "processor", name=f"processor-{worker_id}", WORKER_ID=worker_id, **environment
        )

    def client(
        self, name: str = "watcher", *, staleness_seconds: float = 5.0, **options: Any
    ) -> Client:
        """A trainer's client in this process, following; `options` are the class's."""
        client = Client(
            self.kafka,
            self.catalog,
            name=name,
            namespace=self.namespace,
            staleness_seconds=staleness_seconds,
            **options,
        )
        client.start()
        self._clients.append(client)
        return client

    def digest_address(self, client: Client) -> str:
        """Serve a client's digests as a trainer does; HOST:PORT."""
        server = HealthServer(
            Metrics("test"),
            alive=lambda: {"ok": True},
            ready=client.status,
            host="127.0.0.1",
            port=0,
        )
        server.pages["/digest"] = lambda: {"ok": True, "digests": client.snapshot.digests()}
        server.start()
        self._servers.append(server)
        return server.address

    def close(self, *, keeps_topics: bool = False) -> None:
        """End whatever was started here, and delete its topics unless other worlds share them."""
        for running in self._running:
            running.end()
        for client in self._clients:
            client.stop()
        for server in self._servers:
            server.stop()
        if self._producer is not None:
            self._producer.flush(1)
        self.registry.close()
        if not keeps_topics:
            self._delete_topics()

    def _delete_topics(self) -> None:
        """Delete this namespace's topics: hundreds of them make a broker slow to come back.

        A broker that the test left dead keeps them: it is started again by whoever needs it next.
        """
        if "kafka" not in self.stack.processes:
            return
        admin = AdminClient(client_config(self.kafka, "test-end"))
        try:
            names = self._topics_of(admin)
            if names:
                for deletion in admin.delete_topics(sorted(names), request_timeout=5).values():
                    deletion.result()
        except KafkaException:
            # What a test left behind must not fail that test: it is deleted with the stack.
            return

    # ---- events

    @property
    def producer(self) -> Producer:
        """An idempotent producer, as importers use it."""
        if self._producer is None:
            self._producer = Producer(producer_config(self.kafka, "test"))
        return self._producer

    def produce(self, *events: ProducedEvent) -> list[tuple[int, int]]:
        """Send events and wait for the broker's acknowledgement of each;

        (partition, offset) in order.
        """
        messages = [(event.member.encode(), write_event(event, self.catalog)) for event in events]
        return send(self.producer, self.topic(MEMBER_EVENTS), messages)

    def produce_raw(
        self, key: bytes | None, value: bytes | None, *, partition: int | None = None
    ) -> None:
        """Send any bytes to member-events, and wait until they are acknowledged."""
        topic = self.topic(MEMBER_EVENTS)
        if partition is None:
            self.producer.produce(topic, value, key)
        else:
            self.producer.produce(topic, value, key, partition)
        assert self.producer.flush(30) == 0

    def control(self, *controls: Control) -> None:
        """Send controls and wait for the acknowledgement."""
        send(
            self.producer,
            self.topic(CONTROLS),
            [(control_key(control), write_control(control, self.catalog)) for control in controls],
        )

    def open_policy(self, regime: Regime = Regime.DEFAULT_ON) -> None:
        """Publish a policy that allows everywhere by default: what an exclusion then needs is a
        reason.
        """
        terms = Terms(jurisdictions=("*",), purpose=PURPOSE, regime=regime)
        self.control(
            PolicyPublished(
                event_id=uuid.uuid4().bytes,
                version=f"p-{uuid.uuid4().hex[:6]}",
                terms=(terms,),
                effective_at=Micros(1_600_000_000_000_000),
                recorded_at=Micros(1_600_000_000_000_000),
            )
        )

    # ---- what the log says, and what everybody holds

    def log(self, topic: str = MEMBER_EVENTS) -> list[StoredMessage]:
        """Every message of a topic; per partition in the log's order."""
        return list(read_all(self.kafka, self.topic(topic)))

    def expected_records(self) -> dict[bytes, bytes]:
        """The records that the whole log folds to, by the pure rules."""
        folded: dict[bytes, Record] = {}
        for message in self.log():
            key = message.key or b""
            if re.fullmatch(ID_CHARACTERS + "{1,64}", key.decode("latin1")) is None:
                continue
            event = self._event(message, key)
            folded[key] = fold(folded.get(key), event)
        frame = self.catalog.frame_of("ConsentRecord")
        return {key: write_record(record, frame) for key, record in folded.items()}

    def _event(self, message: StoredMessage, key: bytes) -> MemberEvent:
        import hashlib

        appended_at = Micros(message.appended_at + 999)
        try:
            return admit(read_event(message.value, key, self.catalog), appended_at)
        except UndecodableEvent:
            place = f"{message.partition}:{message.offset}".encode()
            event_id = hashlib.blake2b(place, digest_size=16).digest()
            return EventUnreadable(
                event_id=event_id, member=MemberId(key.decode()), recorded_at=appended_at
            )

    @contextmanager
    def table(self) -> Iterator[RedisTable]:
        """The table, as a worker sees it."""
        table = RedisTable(
            self.stack.addresses.redis_url,
            namespace=self.namespace,
            partitions=PARTITIONS,
            members=10_000,
        )
        try:
            yield table
        finally:
            table.close()

    def table_records(self) -> dict[bytes, bytes]:
        """Every record that the table holds."""
        with self.table() as table:
            return {
                key: raw for partition in range(PARTITIONS) for key, raw in table.scan(partition)
            }

    def log_records(self) -> dict[bytes, bytes]:
        """The newest version of every record in the records topic."""
        newest: dict[bytes, bytes] = {}
        for message in self.log(RECORDS):
            if message.key and message.value:
                known = newest.get(message.key)
                if known is None or version_of(known) <= version_of(message.value):
                    newest[message.key] = message.value
        return newest

    def generations(self) -> dict[int, str | None]:
        """The generation of each partition's table."""
        with self.table() as table:
            return {partition: table.meta(partition).generation for partition in range(PARTITIONS)}

    def has_keys(self) -> bool:
        """Whether the table's server holds anything of this namespace."""
        connection = self.redis()
        try:
            return (
                next(iter(connection.scan_iter(f"{self.namespace}:*", count=1000)), None)
                is not None
            )
        finally:
            connection.close()

    def topics(self) -> set[str]:
        """The topics of this namespace that exist."""
        return self._topics_of(AdminClient(dict(self.kafka)))

    def _topics_of(self, admin: AdminClient) -> set[str]:
        found = admin.list_topics(timeout=10).topics
        return {name for name in found if name.startswith(f"{self.namespace}.")}

    def assert_all_agree(self, *clients: Client, seconds: float = 30.0) -> dict[bytes, bytes]:
        """Log folded purely = table = records topic = every follower, byte for byte; the records.

        A difference of versions means lost events (lower) or events applied twice (higher).
        """
        expected = self.expected_records()
        wait_for(
            lambda: self.table_records() == expected,
            "table = fold of the log",
            seconds=seconds,
            every=0.2,
        )
        wait_for(
            lambda: self.log_records() == expected,
            "records topic = fold of the log",
            seconds=5,
            every=0.2,
        )
        for client in clients:
            wait_for(
                lambda client=client: client.snapshot.records == expected,  # type: ignore[misc]
                f"follower {client.name} = fold of the log",
                seconds=10,
            )
        return expected


# ---- events and controls as tests write them


def now(*, seconds: float = 0.0) -> Micros:
    """This moment, or one before or after it."""
    return Micros(system_clock() + int(seconds * 1_000_000))


def chose(
    member: str, choice: Choice, *, observed: int | None = None, purpose: str = PURPOSE
) -> ConsentChanged:
    """The member chose, just now."""
    return ConsentChanged(
        event_id=uuid.uuid4().bytes,
        member=MemberId(member),
        purpose=purpose,
        choice=choice,
        effective_at=now(),
        recorded_at=now(),
        observed_version=observed,
        source="test",
    )


def opted_out(member: str) -> ConsentChanged:
    """The member opted out."""
    return chose(member, Choice.OPT_OUT)


def opted_in(member: str, observed: int | None = None) -> ConsentChanged:
    """The member opted in."""
    return chose(member, Choice.OPT_IN, observed=observed)


def lives_in(
    member: str, jurisdiction: str = "US", *, since: Micros | None = None
) -> MemberRelocated:
    """The member lives there, and is of age."""
    return MemberRelocated(
        event_id=uuid.uuid4().bytes,
        member=MemberId(member),
        jurisdiction=jurisdiction,
        effective_at=since or now(seconds=-1),
        recorded_at=since or now(seconds=-1),
        age_band=AgeBand.ADULT,
        source="test",
    )


def erased(member: str) -> MemberErased:
    """The member was erased."""
    return MemberErased(
        event_id=uuid.uuid4().bytes,
        member=MemberId(member),
        effective_at=now(seconds=-1),
        recorded_at=now(seconds=-1),
        source="test",
    )


def pause(
    name: str,
    *jurisdictions: str,
    effective: Micros | None = None,
    recorded: Micros | None = None,
    reach: Reach = Reach.GOING_FORWARD,
) -> PauseImposed:
    """A regulator's pause."""
    return PauseImposed(
        event_id=uuid.uuid4().bytes,
        pause=name,
        version=1,
        scope=Scope(jurisdictions=jurisdictions),
        effective_at=effective or now(),
        recorded_at=recorded or now(),
        authority="PCPD",
        basis=PauseBasis.UNDERTAKING,
        reach=reach,
        source="test",
    )


def lift(name: str, opt_ins: OptIns) -> PauseLifted:
    """The end of a pause."""
    return PauseLifted(
        event_id=uuid.uuid4().bytes,
        pause=name,
        version=1,
        effective_at=now(),
        recorded_at=now(),
        opt_ins=opt_ins,
        source="test",
    )


def allowed(client: Client, member: str) -> bool:
    """Whether the client allows the member's data now."""
    return client.decide(member, purpose=PURPOSE).allowed


def reason(client: Client, member: str) -> str:
    """The client's reason for its answer on the member now."""
    return client.decide(member, purpose=PURPOSE).reason.value


def member_of(partition: int, number: int = 0, prefix: str = "m") -> str:
    """A member whose events belong to a partition."""
    candidates = (f"{prefix}{count}" for count in range(100_000))
    homes = (name for name in candidates if partition_of(name.encode(), PARTITIONS) == partition)
    for _ in range(number):
        next(homes)
    return next(homes)


class Load(threading.Thread):
    """Sends events of several members until told to stop, and remembers which were acknowledged.

    Duplicates are part of it: every seventh event is sent twice, as a producer that retries would.
    """

    def __init__(
        self, world: World, *, members: int = 200, batch: int = 40, pause_seconds: float = 0.02
    ) -> None:
        super().__init__(name="load", daemon=True)
        self._world = world
        self._members = [f"load-{number}" for number in range(members)]
        self._batch = batch
        self._pause_seconds = pause_seconds
        self._stopping = threading.Event()
        self.acknowledged = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Send."""
        import random

        draw = random.Random(7)
        try:
            while not self._stopping.is_set():
                events: list[ProducedEvent] = []
                for _ in range(self._batch):
                    event = self._event(draw)
                    events += [event, event] if draw.random() < 1 / 7 else [event]
                self._world.produce(*events)
                self.acknowledged += len(events)
                self._stopping.wait(self._pause_seconds)
        except Exception as error:  # noqa: BLE001 - told by finish()
            self.failure = error

    def _event(self, draw: Any) -> ProducedEvent:
        member, kind = draw.choice(self._members), draw.random()
        if kind < 0.45:
            return opted_out(member)
        if kind < 0.8:
            return opted_in(member, observed=draw.choice([None, 1, 3, 1000]))
        return (
            lives_in(member, draw.choice(["US", "HK", "DE", "GB"]))
            if kind < 0.99
            else erased(member)
        )

    def wait_acknowledged(self, count: int, seconds: float = 30.0) -> None:
        """Return once that many more events are acknowledged."""
        goal = self.acknowledged + count
        wait_for(
            lambda: self.acknowledged >= goal or self.failure,
            f"{count} more events",
            seconds=seconds,
        )

    def finish(self) -> int:
        """Stop; how many events were acknowledged. Raises what the sending raised."""
        self._stopping.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure
        return self.acknowledged


class Watch(threading.Thread):
    """Asks a client about excluded members all the time: each *allowed* is the worst failure there
    is.
    """

    def __init__(self, client: Client, excluded: Iterable[str], sometimes_allowed: str) -> None:
        super().__init__(name="watch", daemon=True)
        self._client = client
        self._excluded = list(excluded)
        self._sometimes_allowed = sometimes_allowed
        self._stopping = threading.Event()
        self.wrong: list[str] = []
        self.asked = 0
        self.stale = 0
        self.allowed = 0

    def run(self) -> None:
        """Ask."""
        while not self._stopping.wait(0.005):
            for member in self._excluded:
                self.asked += 1
                if allowed(self._client, member):
                    self.wrong.append(member)
            found = self._client.decide(self._sometimes_allowed, purpose=PURPOSE)
            self.allowed += found.allowed
            self.stale += found.reason.value == "STALE"

    def finish(self) -> None:
        """Stop, and fail if a single answer was wrong."""
        self._stopping.set()
        self.join(10)
        assert self.asked > 0
        assert not self.wrong, (
            f"{len(self.wrong)} of {self.asked} answers allowed an excluded member"
        )
