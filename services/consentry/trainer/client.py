"""The client that a training system embeds: follow the records and controls, ask, filter.

Fails closed.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from consentry.bundles import PublicKeys, StoredControl
from consentry.domain.decisions import Decision, Row
from consentry.domain.errors import InvalidInput, Refused, Unavailable, UndecodableEvent
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import Micros, Reason, parse_member_id
from consentry.kafka.clients import (
    client_config,
    end_offsets,
    follower_config,
    log_identity,
    partition_count,
    stored,
)
from consentry.kafka.schema_registry import HttpRegistry
from consentry.ops.clock import Clock, system_clock
from consentry.ops.metrics import Metrics
from consentry.trainer.bundled import newest_snapshot
from consentry.trainer.deciding.decide_table import Columns, Decisions, columns_of, decide_table
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.filters.dispatch import filter_any
from consentry.trainer.hooks import Hooks
from consentry.trainer.runs import TrainingRun
from consentry.trainer.sharing import SharedSnapshot, SnapshotWriter
from consentry.wire.catalog import Catalog, load_catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.freshness import FOREVER, stale_age
from consentry.wire.frontiers import read_frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.messages import StoredMessage
from consentry.wire.purge_orders import read_order
from consentry.wire.records import newest_fact, version_of
from consentry.wire.schemas import CONTROLS, FRONTIERS, NAMESPACE, PURGE_ORDERS, RECORDS, topic_name
from consentry.wire.tokens import TokenKeys, read_token, write_token

STALENESS_SECONDS: Final = 5.0
READY_SECONDS: Final = 120.0
"""So long `connect` waits until everything that was there at the start has been read."""
BUNDLE_AGE_SECONDS: Final = 24 * 3600.0
"""What came since is read from Kafka: an older bundle only makes that longer, but may also be a
sign of a roll-back.
"""
TOKEN_WAIT_SECONDS: Final = 3.0
"""So long a question waits for what its token demands; frontiers, which prove it, come every
second.
"""
_PATIENCE_SECONDS: Final = 3.0
"""Who waits for longer is told what for."""
_FRONTIERS_TAIL: Final = 20
"""A live partition publishes a frontier every second: its last one is among this many per
partition.
"""
_BATCH: Final = 5000
_SAMPLES: Final = 32
_PURPOSES_ASKED_MAX: Final = 1000
_KEPT_DELAYS: Final = 200_000
DataSet = TypeVar("DataSet")
_LOG = structlog.get_logger(__name__)


class Client:
    """Follows everything from the beginning (or from an earlier view's position) on one thread, and
    answers.

    It assigns its partitions itself, joins no group and commits nothing; do not share it across a
    fork. `name` is the subscriber in metrics and receipts. Until all that was there at the start
    has been read, and whenever freshness is not proven within `staleness_seconds`, every answer is
    STALE.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        catalog: Catalog,
        *,
        name: str,
        namespace: str = NAMESPACE,
        staleness_seconds: float = STALENESS_SECONDS,
        clock: Clock = system_clock,
        metrics: Metrics | None = None,
        resume: Snapshot | None = None,
        bundles: str | None = None,
        bundle_keys: PublicKeys | Path | str | None = None,
        bundle_age_seconds: float = BUNDLE_AGE_SECONDS,
        bundle_credential: str = "",
        cache: Path | None = None,
        journal: Path | None = None,
        token_keys: TokenKeys | None = None,
    ) -> None:
        """Begins with the newest bundle of the store `bundles`, if that is given, and else with an
        empty view.

        The store is an fsspec URL, or a gateway's https://…/v1/bundles with a `bundle_credential`
        as trainers have it. `bundle_keys` are the public keys that are believed, or the file that
        holds them; a bundle that was proven fresh longer than `bundle_age_seconds` ago is refused.
        Its records lie in unnamed files in the directory `cache`. Raises Unavailable, Refused,
        InvalidInput, BundleRefused.
        """
        self.name = name
        self.metrics = metrics or Metrics("client")
        self.delays_ms: deque[float] = deque(maxlen=_KEPT_DELAYS)
        """Append by the broker → in memory, in milliseconds, of the last records that came live."""
        self._kafka = kafka
        self._catalog = catalog
        self._clock = clock
        self._staleness_seconds = staleness_seconds
        self._token_keys = token_keys or TokenKeys()
        self._moved = threading.Condition()
        self._topics = {
            topic_name(namespace, topic): topic
            for topic in (RECORDS, CONTROLS, FRONTIERS, PURGE_ORDERS)
        }
        self._names = {topic: name for name, topic in self._topics.items()}
        self._admin = AdminClient(client_config(kafka, f"consentry-{name}"))
        self.partitions = partition_count(self._admin, self._names[RECORDS])
        self.snapshot = resume or Snapshot(self.partitions, iso_jurisdictions())
        self._controls_log: list[StoredMessage | StoredControl] = []
        """Every control's message so far, in log order, for who shares the view."""
        if bundles is not None:
            self._load(
                bundles, bundle_keys, namespace, bundle_age_seconds, cache, bundle_credential
            )
        self._is_whole = resume is None
        self._sharing: SnapshotWriter | None = None
        self.hooks = Hooks(self.snapshot, self.open_orders, clock=clock)
        self.on_exclusion = self.hooks.on_exclusion
        self.on_control = self.hooks.on_control
        self.on_purge_order = self.hooks.on_purge_order
        self._orders: dict[str, PurgeOrder] = {}
        self._on_change: list[Callable[[], None]] = []
        self._journal = journal.open("a", buffering=1) if journal is not None else None
        self._ends: dict[tuple[str, int], int] = {}
        self._caught_up = threading.Event()
        self._failure = ""
        self._was_stale = True
        self._purposes_asked: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{name}", daemon=True)

    def _load(
        self,
        url: str,
        keys: PublicKeys | Path | str | None,
        namespace: str,
        age_seconds: float,
        cache: Path | None,
        credential: str,
    ) -> None:
        """Begin with the newest bundle.

        Raises BundleRefused, Refused where it is of other topics, InvalidInput.
        """
        if keys is None:
            raise InvalidInput(
                "A store of bundles was given without the keys to believe.",
                code="bundle.no_keys",
                fix="give bundle_keys, the file of the bundler's public key",
            )
        believed = keys if isinstance(keys, PublicKeys) else PublicKeys.read(keys)
        snapshot, bundle = newest_snapshot(
            url,
            keys=believed,
            namespace=namespace,
            now=self._clock(),
            max_age_seconds=age_seconds,
            catalog=self._catalog,
            directory=cache,
            credential=credential,
        )
        for topic, told in bundle.manifest.logs.items():
            if told and told != log_identity(self._kafka, self._names[topic]).hex():
                raise Refused(
                    f"The bundle {bundle.manifest.bundle_id} was read from another topic {topic} "
                    "than the one of this "
                    "broker: that was made anew since, or the bundle is of another cluster.",
                    code="bundle.other_log",
                    fix="take the bundles of this cluster, or have its bundler write a snapshot",
                )
        self.snapshot = snapshot
        self._controls_log += bundle.controls()
        _LOG.info(
            "bundle_loaded",
            subscriber=self.name,
            bundle=bundle.manifest.bundle_id,
            members=len(self.snapshot.records),
        )

    def share(self, directory: Path | str) -> SharedSnapshot:
        """Keep the view in a directory, for worker processes on this machine; what they get is a
        Judge.

        Written a few times a second until `stop`. Raises InvalidInput for a directory that others
        can write.
        """
        if not self._is_whole:
            raise InvalidInput(
                "A client that resumed from another's view cannot share it: it has not read all "
                "controls itself.",
                code="trainer.not_whole",
                fix="let it begin anew, or with a bundle",
            )
        if self._sharing is None:
            self._sharing = SnapshotWriter(
                self.snapshot,
                Path(directory),
                catalog=self._catalog,
                detail=lambda: self.stale_detail,
                controls=self._controls_log,
            )
        return self.portable()

    def portable(self) -> SharedSnapshot:
        """What stands for this client in another process. Raises Refused unless the view is
        shared.
        """
        if self._sharing is None:
            raise Refused(
                f"The client {self.name} cannot work in another process, as librdkafka does not "
                "survive a fork.",
                code="trainer.not_portable",
                fix="call client.share(DIRECTORY) before the workers begin; or read without "
                "worker processes",
            )
        return SharedSnapshot(
            self._sharing.directory, staleness_seconds=self._staleness_seconds, clock=self._clock
        )

    @classmethod
    def connect(
        cls,
        kafka: Mapping[str, str],
        *,
        name: str,
        registry_url: str,
        registry: Mapping[str, Any] | None = None,
        namespace: str = NAMESPACE,
        ready_seconds: float = READY_SECONDS,
        **options: Any,
    ) -> Client:
        """A client that follows and is ready; `with` stops it.

        Raises Unavailable, Refused, InvalidInput.

        `kafka` holds librdkafka's settings for addresses and security, `registry` more settings of
        the registry's client, such as basic.auth.user.info; `options` are those of the class.
        """
        if not structlog.is_configured():
            # What a program prints is its own: unless it says otherwise, what a library has to tell
            # goes beside it.
            structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
        catalog = load_catalog(HttpRegistry(registry_url, settings=registry), namespace)
        client = cls(kafka, catalog, name=name, namespace=namespace, **options)
        client.start()
        try:
            client.wait_until_ready(ready_seconds)
        except BaseException:
            client.stop()
            raise
        return client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to follow. Raises Refused or Unavailable where the topics cannot be read."""
        places = [(self._names[topic], 0) for topic in (CONTROLS, PURGE_ORDERS, FRONTIERS)]
        places += [(self._names[RECORDS], partition) for partition in range(self.partitions)]
        self._ends = {
            (self._topics[name], partition): end
            for (name, partition), end in end_offsets(self._admin, places).items()
        }
        # Computed at each scrape, so that it grows when following stops.
        self.metrics.gauge("consentry_staleness_seconds", self.name).set_function(
            self.staleness_seconds
        )
        self._consumer = Consumer(follower_config(self._kafka, f"consentry-{self.name}"))
        self._consumer.assign([TopicPartition(*place, self._start_of(*place)) for place in places])
        self._thread.start()

    def _start_of(self, name: str, partition: int) -> int:
        topic = self._topics[name]
        if topic == FRONTIERS:
            # Frontiers are only of use while they are young; an older one proves nothing.
            tail = self._ends[FRONTIERS, 0] - _FRONTIERS_TAIL * self.partitions
            return tail if tail > 0 else OFFSET_BEGINNING
        if topic == PURGE_ORDERS:
            return OFFSET_BEGINNING  # orders are not part of a view: each client reads them all
        return self.snapshot.positions.get((topic, partition), OFFSET_BEGINNING)

    def stop(self) -> None:
        """End following; answers are STALE from then on."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._failure = self._failure or "the client was stopped"
        self.hooks.stop()
        if self._sharing is not None:
            self._sharing.stop()
        if self._journal is not None:
            self._journal.close()

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Return once fresh answers are given. Raises Unavailable after that time."""
        until = monotonic() + timeout_seconds
        told_at = monotonic() + _PATIENCE_SECONDS
        while detail := self._stale_detail(self._clock()):
            if monotonic() > told_at:
                _LOG.warning(
                    "not_ready_yet",
                    subscriber=self.name,
                    detail=detail,
                    hint="is a processor running?",
                )
                told_at += _PATIENCE_SECONDS * 5
            if monotonic() > until:
                raise Unavailable(
                    f"The trainer {self.name} is not ready after {timeout_seconds:.0f} s: "
                    f"{self._stale_detail(self._clock())}.",
                    code="trainer.not_ready",
                    fix="check that the processor runs: it publishes a frontier every second",
                )
            self._stopping.wait(0.02)

    def wait_for(self, token: str, timeout_seconds: float) -> None:
        """Return once answers are at least as fresh as a consistency token.

        Raises Unavailable after that time.

        Raises InvalidInput for a text that is no token, or one that was altered where the client
        has the token keys.
        """
        detail = self._behind(token, timeout_seconds)
        if detail:
            raise Unavailable(
                f"The trainer {self.name} is not as fresh as the token after {timeout_seconds:g} "
                f"s: {detail}.",
                code="trainer.not_yet",
                fix="wait longer, or check that the processor runs: it publishes a frontier every "
                "second",
            )

    def _behind(self, at_least: str | None, wait_seconds: float) -> str:
        """Why an answer would not be fresh, or not as fresh as the token, after waiting at most so
        long; else empty.
        """
        token = None if at_least is None else read_token(at_least, self._token_keys)
        detail = self._stale_detail(self._clock()) or (
            "" if token is None else self.snapshot.missing(token)
        )
        if token is None or not detail:
            return detail
        until = monotonic() + wait_seconds
        with self._moved:
            while (
                detail := self._stale_detail(self._clock()) or self.snapshot.missing(token)
            ) and not self._failure:
                left = until - monotonic()
                if left <= 0:
                    break
                self._moved.wait(min(left, 0.25))  # freshness also comes and goes with time alone
        return detail

    @property
    def is_following(self) -> bool:
        """Whether the following thread lives: what liveness looks at."""
        return self._thread.is_alive() and not self._failure

    @property
    def is_fresh(self) -> bool:
        """Whether answers are given now; otherwise every one is STALE."""
        return not self._stale_detail(self._clock())

    @property
    def stale_detail(self) -> str:
        """Why nothing is allowed now; empty where freshness is proven."""
        return self._stale_detail(self._clock())

    @property
    def snapshot_id(self) -> str:
        """Names all that answers rest on: equal only where the same records and controls were
        read.
        """
        return self.snapshot.snapshot_id

    def staleness_seconds(self) -> float:
        """Age of the least fresh partition, in seconds; infinite while any has never been proven
        fresh.
        """
        return self.snapshot.staleness_seconds(self._clock())

    def _stale_detail(self, now: Micros) -> str:
        """Why nothing can be allowed now; empty where freshness is proven."""
        if self._failure:
            return self._failure
        if not self._caught_up.is_set():
            return "what was there at the start has not all been read"
        age = self.snapshot.staleness_seconds(now)
        return stale_age("the least fresh partition", age, self._staleness_seconds)

    def decide(
        self,
        member: str,
        *,
        purpose: str,
        row: Row | None = None,
        at: Micros | None = None,
        known_at: Micros | None = None,
        at_least: str | None = None,
        wait_seconds: float = TOKEN_WAIT_SECONDS,
    ) -> Decision:
        """May this member's data, or this row of it, be used for `purpose`?

        Times default to now, in microseconds.

        With the consistency token `at_least` the answer knows of what was accepted with it: it is
        waited for, at most `wait_seconds`, and else the answer is STALE. Raises InvalidInput for a
        member id or a token that is none.
        """
        detail = self._behind(at_least, wait_seconds)
        now = self._clock()
        decision = self.snapshot.decide(
            parse_member_id(member),
            row,
            purpose=purpose,
            at=max(now, self.snapshot.newest_frontier) if at is None else at,
            known_at=FOREVER if known_at is None else known_at,
            stale_detail=detail,
        )
        if not detail:
            self._tell_unknown(purpose)
        self._count(decision.allowed, decision.reason, 1)
        return decision

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at: Micros | None = None,
        known_at: Micros | None = None,
        at_least: str | None = None,
        wait_seconds: float = TOKEN_WAIT_SECONDS,
    ) -> Decisions:
        """Decide every row of an Arrow table; see filter.decide_table.

        Times default to now, in microseconds.

        `at_least` and `wait_seconds` are those of `decide`: where the token is not reached every
        row is STALE.

        Without `columns` they are found by their conventional names: member_id, jurisdiction,
        category, collected_at.
        """
        detail = self._behind(at_least, wait_seconds)
        now = self._clock()
        decisions = decide_table(
            table,
            self.snapshot,
            purpose=purpose,
            at=max(now, self.snapshot.newest_frontier) if at is None else at,
            known_at=FOREVER if known_at is None else known_at,
            columns=columns_of(table, columns),
            is_fresh=not detail,
        )
        if not detail:
            self._tell_unknown(purpose)
        for reason, number in decisions.counts().items():
            self._count(reason.allows, reason, number)
        return decisions

    def filter(
        self,
        data: DataSet,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
        tally: Counter[Reason] | None = None,
    ) -> DataSet:
        """The rows that may be used for `purpose`, of a data set of any library in
        docs/trainers.md; see `decider`.

        What is lazy or streaming stays so, and is judged when it is read. `tally` counts every row
        by its reason. Raises InvalidInput for other data sets, and for a column that is missing.
        """
        found: DataSet = filter_any(
            self, data, purpose=purpose, columns=columns, at_least=at_least, tally=tally
        )
        return found

    def training_run(
        self, *, dataset: str, purpose: str, store: str, **options: Any
    ) -> TrainingRun:
        """A run that reads a data set for a purpose, to be used by `with`; see TrainingRun for the
        other options.

        `store` is an fsspec URL for what is written of it: its beginning, what it read, its
        certificate. The lease is as long as this client's staleness bound unless `lease_seconds`
        says otherwise. Raises InvalidInput.
        """
        options.setdefault("lease_seconds", self._staleness_seconds)
        return TrainingRun(
            self,
            dataset=dataset,
            purpose=purpose,
            store=store,
            subscriber=self.name,
            token_keys=self._token_keys,
            clock=self._clock,
            **options,
        )

    def token(self) -> str | None:
        """The consistency token of all that answers rest on now; None while nothing is proven."""
        found = self.snapshot.freshness.token(self.snapshot.positions, self._clock())
        return None if found is None else write_token(found, self._token_keys)

    def open_orders(self) -> list[PurgeOrder]:
        """The purge orders that are not settled, in the order in which they were opened."""
        return [order for order in list(self._orders.values()) if not order.is_settled]

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` run, on the following thread, after purge orders or controls changed."""
        self._on_change.append(call)

    def status(self) -> dict[str, Any]:
        """What an operator asks first: freshness, positions, counts. No member ids."""
        staleness = self.staleness_seconds()
        detail = self._stale_detail(self._clock())
        return {
            "ok": not detail,
            "detail": detail or "fresh",
            "subscriber": self.name,
            "staleness_seconds": None if staleness == float("inf") else round(staleness, 3),
            "members": len(self.snapshot.records),
            "controls": len(self.snapshot.controls.log),
            "purge_orders_open": len(self.open_orders()),
            "positions": {
                f"{topic}-{partition}": at
                for (topic, partition), at in sorted(self.snapshot.positions.items())
            },
        }

    def _tell_unknown(self, purpose: str) -> None:
        """Log once that no policy names a purpose: it excludes everybody, as one that was misspelt
        does.
        """
        if purpose in self._purposes_asked or len(self._purposes_asked) >= _PURPOSES_ASKED_MAX:
            return
        self._purposes_asked.add(purpose)
        known = self.snapshot.controls.purposes
        if purpose not in known:
            _LOG.warning(
                "purpose_unknown", purpose=purpose[:80], known=", ".join(known)[:300] or "none"
            )

    def _count(self, allowed: bool, reason: Reason, number: int) -> None:
        outcome = "allowed" if allowed else "excluded"
        fresh = "false" if reason is Reason.STALE else "true"
        self.metrics.counter("consentry_decisions_total", outcome, reason.value, fresh).inc(number)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                first = self._consumer.poll(0.05)
                messages = [] if first is None else [first, *self._consumer.consume(_BATCH - 1, 0)]
                self._apply(messages)
                self.snapshot.settle_frontiers()
                self.hooks.look()
                self._look_whether_caught_up()
                if messages:
                    with self._moved:
                        self._moved.notify_all()
                self._tell_freshness()
        except Exception as error:  # noqa: BLE001 - logged, and every answer is STALE from here on
            # Whatever it was, what is held is not proven any more: from here on everything is
            # STALE.
            self._failure = f"following ended ({type(error).__name__})"
            _LOG.critical("follower_ended", subscriber=self.name, exc_info=error)
        finally:
            self._consumer.close()

    def _tell_freshness(self) -> None:
        """Log once when answers become STALE, and once when they are given again."""
        detail = self._stale_detail(self._clock())
        if self._caught_up.is_set() and bool(detail) != self._was_stale:
            self._was_stale = bool(detail)
            if detail:
                _LOG.warning("stale", subscriber=self.name, detail=detail)
            else:
                _LOG.info("fresh", subscriber=self.name)

    def _apply(self, messages: Sequence[Message]) -> None:
        records: dict[int, list[Message]] = {}
        changed = False
        for message in messages:
            error = message.error()
            topic = self._topics.get(message.topic() or "", "")
            partition, offset = message.partition(), message.offset()
            if error is not None:
                self._note_error(error, topic, partition, offset)
            elif topic == RECORDS:
                records.setdefault(partition or 0, []).append(message)
            else:
                self._apply_other(topic, message)
                changed = changed or topic in (CONTROLS, PURGE_ORDERS)
        for partition, found in records.items():
            self._apply_records(partition, found)
        if changed:
            for call in self._on_change:
                call()
            self.hooks.changed()

    def _note_error(
        self, error: KafkaError, topic: str, partition: int | None, offset: int | None
    ) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            self._move(topic, partition or 0, offset or 0)
        elif error.fatal() or error.code() in (
            KafkaError._AUTO_OFFSET_RESET,
            KafkaError.OFFSET_OUT_OF_RANGE,
        ):
            raise Unavailable(
                f"The topic {topic} no longer holds what was to be read next: {error.str()}.",
                code="kafka.position_lost",
                fix="start the trainer anew, so that it reads from the beginning",
            )
        else:
            _LOG.warning("kafka_error", subscriber=self.name, detail=error.str())

    def _apply_records(self, partition: int, messages: Sequence[Message]) -> None:
        whole = [message for message in messages if message.key() and message.value()]
        before = self.snapshot.regressions
        keys = [bytes(message.key() or b"") for message in whole]
        values = [bytes(message.value() or b"") for message in whole]
        earlier = self.hooks.before(keys)
        self.snapshot.apply_records(partition, keys, values)
        self.hooks.after(earlier, keys, values)
        self._move(RECORDS, partition, (messages[-1].offset() or 0) + 1)
        if self.snapshot.regressions > before:
            count = self.snapshot.regressions - before
            self.metrics.counter("consentry_follower_regressions_total", self.name).inc(count)
        if self._caught_up.is_set():
            self._measure([message.timestamp()[1] for message in whole])
        self.metrics.gauge("consentry_members", self.name).set(len(self.snapshot.records))
        if self._journal is not None:
            now = self._clock()
            for key, value in zip(keys, values, strict=True):
                fact = newest_fact(value)
                line = {"applied_at": now, "member": key.decode(), "version": version_of(value)}
                self._journal.write(
                    json.dumps(line | {"tag": fact.tag.hex() if fact else ""}) + "\n"
                )

    def _measure(self, appended_ms: Sequence[int]) -> None:
        now_ms = self._clock() / 1000
        delays = np.maximum(now_ms - np.array(appended_ms, dtype=np.float64), 0.0).tolist()
        self.delays_ms.extend(delays)
        histogram = self.metrics.histogram("consentry_event_to_trainer_seconds", self.name)
        for delay in delays[:: max(1, len(delays) // _SAMPLES)]:
            histogram.observe(delay / 1000)

    def _apply_other(self, topic: str, message: Message) -> None:
        found = stored(message)
        if topic == CONTROLS:
            control = read_control_or_pause(
                found.value,
                offset=found.offset,
                appended_at=found.appended_at,
                catalog=self._catalog,
            )
            self._controls_log.append(found)
            self.snapshot.apply_control(control)
            now = self._clock()
            if self._caught_up.is_set():
                delay = max(0.0, (now - found.appended_at) / 1e6)
                self.metrics.histogram("consentry_pause_to_trainer_seconds", self.name).observe(
                    delay
                )
            if self._journal is not None:
                self._journal.write(
                    json.dumps({"applied_at": now, "control": control.event_id.hex()}) + "\n"
                )
        else:
            self._apply_frontier_or_order(topic, found.value, found.appended_at)
        self._move(topic, found.partition, found.offset + 1)

    def _apply_frontier_or_order(
        self, topic: str, value: bytes | None, appended_at: Micros
    ) -> None:
        try:
            if topic == FRONTIERS:
                self.snapshot.apply_frontier(read_frontier(value, self._catalog), appended_at)
            else:
                order = read_order(value, self._catalog)
                known = self._orders.get(order.order_id)
                if known is None or not known.is_settled:
                    self._orders[order.order_id] = order
        except UndecodableEvent as error:
            # An unreadable frontier proves nothing; an unreadable order stays owed in the ledger.
            _LOG.error(
                "follower_unreadable",
                subscriber=self.name,
                topic=topic,
                error_class=error.error_class,
            )

    def _move(self, topic: str, partition: int, position: int) -> None:
        key = (topic, partition)
        self.snapshot.positions[key] = max(position, self.snapshot.positions.get(key, 0))

    def _look_whether_caught_up(self) -> None:
        if self._caught_up.is_set():
            return
        if all(self.snapshot.positions.get(place, 0) >= end for place, end in self._ends.items()):
            self._caught_up.set()
            self.hooks.ready()
            _LOG.info(
                "follower_caught_up", subscriber=self.name, members=len(self.snapshot.records)
            )
