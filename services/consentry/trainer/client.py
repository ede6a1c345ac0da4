"""The trainer's client, which a program embeds: follow the log, decide, filter. Fails closed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import structlog
from confluent_kafka.admin import AdminClient

from consentry.bundles import Bundle, PublicKeys
from consentry.domain.decisions import Decision, Row
from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.domain.orders import PurgeOrder
from consentry.domain.values import Micros, Reason, parse_member_id
from consentry.kafka.clients import client_config, log_identity, partition_count
from consentry.kafka.schema_registry import HttpRegistry
from consentry.ops.clock import Clock, system_clock
from consentry.ops.metrics import Metrics
from consentry.trainer.bundled import believed_keys, check_logs, newest_snapshot
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import Decisions, decide_table
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.filters.dispatch import filter_any
from consentry.trainer.runs import TrainingRun
from consentry.trainer.sharing import ControlMessage, SharedSnapshot, SnapshotWriter
from consentry.trainer.snapshot_follower import SnapshotFollower
from consentry.wire.catalog import Catalog, load_catalog
from consentry.wire.freshness import FOREVER
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import NAMESPACE, RECORDS, topic_name
from consentry.wire.tokens import TokenKeys, read_token, write_token

STALENESS_SECONDS: Final = 5.0
READY_SECONDS: Final = 120.0
"""The time that `connect` waits until everything that was there at the start has been read."""
BUNDLE_AGE_SECONDS: Final = 24 * 3600.0
"""What came since is read from Kafka: an older bundle only makes that longer, but may also be a
sign of a roll-back.
"""
TOKEN_WAIT_SECONDS: Final = 3.0
"""The time that a question waits for its token; frontiers, which prove it, come every second."""
_PURPOSES_ASKED_MAX: Final = 1000
DataSet = TypeVar("DataSet")
_LOG = structlog.get_logger(__name__)


class Client:
    """The trainer's client: follows the log on a thread, and answers from its snapshot.

    It reads from the beginning, or from the position of an earlier snapshot or a bundle. It assigns
    its partitions itself, joins no group and commits nothing; do not share it across a fork. `name`
    is the subscriber in metrics and receipts. Until all that was there at the start has been read,
    and whenever freshness is not proven within `staleness_seconds`, every answer is STALE.
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
        """Begin with the newest bundle of the store `bundles`, if given, else with nothing.

        The store is an fsspec URL, or a gateway's https://…/v1/bundles with a `bundle_credential`
        as trainers have it. `bundle_keys` are the public keys that are believed, or the file that
        holds them; a bundle that was proven fresh longer than `bundle_age_seconds` ago is refused.
        Its records lie in unnamed files in the directory `cache`. Raises Unavailable, Refused,
        InvalidInput, BundleRefused.
        """
        self.name = name
        self.metrics = metrics or Metrics("client")
        self._catalog = catalog
        self._clock = clock
        self._staleness_seconds = staleness_seconds
        self._token_keys = token_keys or TokenKeys()
        admin = AdminClient(client_config(kafka, f"consentry-{name}"))
        self.partitions = partition_count(admin, topic_name(namespace, RECORDS))
        self.snapshot = resume or Snapshot(self.partitions, iso_jurisdictions())
        self._controls_log: list[ControlMessage] = []
        """Every control's message so far, in log order, for those who share the snapshot."""
        if bundles is not None:
            self.snapshot, bundle = newest_snapshot(
                bundles,
                keys=believed_keys(bundle_keys),
                namespace=namespace,
                now=clock(),
                max_age_seconds=bundle_age_seconds,
                catalog=catalog,
                directory=cache,
                credential=bundle_credential,
            )
            self._begin_with(bundle, kafka, namespace)
        self._is_whole = resume is None
        self._sharing: SnapshotWriter | None = None
        self._follower = self._make_follower(kafka, admin, namespace=namespace, journal=journal)
        self.hooks = self._follower.hooks
        self.on_exclusion = self.hooks.on_exclusion
        self.on_control = self.hooks.on_control
        self.on_purge_order = self.hooks.on_purge_order
        self._purposes_asked: set[str] = set()

    def _begin_with(self, bundle: Bundle, kafka: Mapping[str, str], namespace: str) -> None:
        """Check that a bundle is of the logs that Kafka has now, and take over its controls.

        Raises Refused, Unavailable.
        """

        def identity(topic: str) -> str:
            return log_identity(kafka, topic_name(namespace, topic)).hex()

        check_logs(bundle, identity)
        self._controls_log += bundle.controls()
        _LOG.info(
            "bundle_loaded",
            subscriber=self.name,
            bundle=bundle.manifest.bundle_id,
            members=len(self.snapshot.records),
        )

    def _make_follower(
        self, kafka: Mapping[str, str], admin: AdminClient, *, namespace: str, journal: Path | None
    ) -> SnapshotFollower:
        """Return the follower that keeps the client's snapshot up to date; it is not started."""
        return SnapshotFollower(
            kafka,
            admin,
            self._catalog,
            self.snapshot,
            partitions=self.partitions,
            name=self.name,
            namespace=namespace,
            staleness_seconds=self._staleness_seconds,
            clock=self._clock,
            metrics=self.metrics,
            controls_log=self._controls_log,
            journal=journal,
        )

    def share(self, directory: Path | str) -> SharedSnapshot:
        """Keep the client's snapshot in a directory, for worker processes on this machine.

        They get a Decider. It is written a few times a second until `stop`. Raises InvalidInput for
        a directory that others can write.
        """
        if not self._is_whole:
            raise InvalidInput(
                "A client that resumed from another's snapshot cannot share it: it has not read "
                "all controls itself.",
                code="trainer.not_whole",
                fix="let it begin anew, or with a bundle",
            )
        if self._sharing is None:
            self._sharing = SnapshotWriter(
                self.snapshot,
                Path(directory),
                catalog=self._catalog,
                detail=self._follower.stale_detail,
                controls=self._controls_log,
            )
        return self.portable()

    def portable(self) -> SharedSnapshot:
        """Return the thing that stands for this client in another process.

        Raises Refused unless the snapshot is shared.
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
        """Return a trainer's client that follows the log and is ready; `with` stops it.

        `kafka` holds librdkafka's settings for addresses and security, `registry` more settings of
        the registry's client, such as basic.auth.user.info; `options` are those of the class.
        Raises Unavailable, Refused, InvalidInput.
        """
        if not structlog.is_configured():
            # What a program prints is its own: unless it says otherwise, what a library logs goes
            # beside it.
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
        """Have the client begin to follow the log.

        Raises Refused or Unavailable where the topics cannot be read.
        """
        self._follower.start()

    def stop(self) -> None:
        """Have the client follow the log no more; its answers are STALE from then on."""
        self._follower.stop()
        if self._sharing is not None:
            self._sharing.stop()

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Return once the client gives fresh answers. Raises Unavailable after that time."""
        self._follower.wait_until_ready(timeout_seconds)

    def wait_for(self, token: str, timeout_seconds: float) -> None:
        """Return once the client's answers are at least as fresh as a consistency token.

        Raises Unavailable after that time; InvalidInput for a text that is no token, or one that
        was altered where the client has the token keys.
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
        """Return why an answer would be stale after waiting for the token; else empty."""
        if at_least is None:
            return self._follower.behind(None, wait_seconds)
        token = read_token(at_least, self._token_keys)
        return self._follower.behind(token, wait_seconds)

    @property
    def is_following(self) -> bool:
        """True while the client's following thread lives: the answer for a liveness probe."""
        return self._follower.is_following

    @property
    def is_fresh(self) -> bool:
        """True while the client gives answers; otherwise every one is STALE."""
        return not self._follower.stale_detail()

    @property
    def stale_detail(self) -> str:
        """The reason why the client allows nothing now; empty where freshness is proven."""
        return self._follower.stale_detail()

    @property
    def snapshot_id(self) -> str:
        """The name of all that the client's answers rest on.

        It is equal only for the same records and controls.
        """
        return self.snapshot.snapshot_id

    def staleness_seconds(self) -> float:
        """Return the age of the client's least fresh partition.

        It is infinite while one was never fresh.
        """
        return self.snapshot.staleness_seconds(self._clock())

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
        """Have the client decide if the member's data, or this row, may be used for `purpose`.

        Times default to now, in microseconds. With the consistency token `at_least` the answer
        includes all that was accepted with it: the client waits for that, at most `wait_seconds`,
        and else the answer is STALE. Raises InvalidInput for a wrong member id or token.
        """
        detail = self._behind(at_least, wait_seconds)
        if at is None:
            at = max(self._clock(), self.snapshot.newest_frontier)
        if known_at is None:
            known_at = FOREVER
        decision = self.snapshot.decide(
            parse_member_id(member),
            row,
            purpose=purpose,
            at=at,
            known_at=known_at,
            stale_detail=detail,
        )
        if not detail:
            self._warn_if_unknown(purpose)
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
        """Have the client decide every row of an Arrow table; see decide_table.decide_table.

        Times default to now, in microseconds. `at_least` and `wait_seconds` are those of `decide`:
        where the token is not reached every row is STALE. Without `columns` they are found by their
        conventional names: member_id, jurisdiction, category, collected_at.
        """
        detail = self._behind(at_least, wait_seconds)
        if at is None:
            at = max(self._clock(), self.snapshot.newest_frontier)
        if known_at is None:
            known_at = FOREVER
        decisions = decide_table(
            table,
            self.snapshot,
            purpose=purpose,
            at=at,
            known_at=known_at,
            columns=find_columns(table.column_names, columns),
            is_fresh=not detail,
        )
        if not detail:
            self._warn_if_unknown(purpose)
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
        """Return a data set's rows that may be used for `purpose`; see the module `decider`.

        `data` is a data set of any library in docs/trainers.md. A lazy or streaming one stays so,
        and is decided when it is read. `tally` counts every row by its reason. Raises InvalidInput
        for other data sets, and for a column that is missing.
        """
        allowed_rows: DataSet = filter_any(
            self, data, purpose=purpose, columns=columns, at_least=at_least, tally=tally
        )
        return allowed_rows

    def training_run(
        self, *, dataset: str, purpose: str, store: str, **options: Any
    ) -> TrainingRun:
        """Return the client's training run on a data set for a purpose, to be used by `with`.

        `store` is an fsspec URL for what is written of it: its beginning, what it read, its
        certificate. The lease is as long as this client's staleness bound unless `lease_seconds`
        says otherwise; see TrainingRun for the other options. Raises InvalidInput.
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
        """Return the consistency token of all the client's answers rest on; None if unproven."""
        token = self.snapshot.freshness.token(self.snapshot.positions, self._clock())
        if token is None:
            return None
        return write_token(token, self._token_keys)

    def open_orders(self) -> list[PurgeOrder]:
        """Return the purge orders not settled, in the order in which they were opened."""
        return self._follower.open_orders()

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` run, on the client's thread, after purge orders or controls changed."""
        self._follower.on_change(call)

    def status(self) -> dict[str, Any]:
        """Return the client's status for an operator, without member ids.

        It has the freshness, the positions and the counts.
        """
        staleness = self.staleness_seconds()
        detail = self.stale_detail
        age_seconds = None
        if staleness != float("inf"):
            age_seconds = round(staleness, 3)
        positions = {}
        for (topic, partition), position in sorted(self.snapshot.positions.items()):
            positions[f"{topic}-{partition}"] = position
        return {
            "ok": not detail,
            "detail": detail or "fresh",
            "subscriber": self.name,
            "staleness_seconds": age_seconds,
            "members": len(self.snapshot.records),
            "controls": len(self.snapshot.controls.log),
            "purge_orders_open": len(self.open_orders()),
            "positions": positions,
        }

    def _warn_if_unknown(self, purpose: str) -> None:
        """Log once that no policy names a purpose: it may be misspelt, and excludes everybody."""
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
