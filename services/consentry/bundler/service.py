"""The bundler: follow the log, publish bundles, delete old ones, and repair records."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Literal, Protocol

import structlog

from consentry.bundler.claims import CLAIM_SECONDS, SequenceClaims
from consentry.bundler.record_repair import RecordRepairer
from consentry.bundles import (
    BundleRefused,
    BundleState,
    BundleStore,
    Manifest,
    Pointer,
    PublicKeys,
    Regression,
    SigningKey,
    open_bundle,
    prune,
    publish,
    why_no_delta,
    write_bundle,
)
from consentry.bundles.reader import latest
from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.wire.freshness import stale_age
from consentry.wire.messages import StoredMessage
from consentry.wire.records import version_of

STALL_SECONDS: Final = 900.0
"""The time that one turn may take, with the writing of a whole snapshot, before the bundler counts
as dead.
"""
_RETRY_SECONDS: Final = 1.0
_SILENT_TURNS: Final = 3
_SILENT_SECONDS: Final = 10.0
_LOG = structlog.get_logger(__name__)

Outcome = Literal["snapshot", "delta", "stale", "standby", "conflict", "failed"]
WRITTEN: Final = frozenset({"snapshot", "delta"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlerPlan:
    """The times of a bundler, in seconds: between bundles, until they are deleted, and so on.

    `snapshot_every` is the number of bundles that share one snapshot.
    """

    every_seconds: float
    snapshot_every: int
    keep_seconds: float
    staleness_seconds: float
    claim_seconds: float = CLAIM_SECONDS

    @property
    def silent_seconds(self) -> float:
        """The age of another bundler's newest bundle at which that bundler counts as gone."""
        return max(_SILENT_TURNS * self.every_seconds, _SILENT_SECONDS)


class StateFollower(Protocol):
    """The reader that keeps the bundler's state up to date; see BundleFollower."""

    state: BundleState

    @property
    def is_caught_up(self) -> bool:
        """True once the bundler has read all that was in the topics at the start."""

    def step(self, timeout_seconds: float = 0.1) -> int:
        """Wait for messages, take them in, and return their number."""


class Bundler:
    """The bundler: writes bundles of the follower's state, one after another.

    Call `step` again and again.

    `newest` is the bundle that the follower's state was restored from, if any: the chain goes on
    from it. Times of day come from `clock`, durations from `seconds`.
    """

    def __init__(
        self,
        follower: StateFollower,
        store: BundleStore,
        claims: SequenceClaims,
        *,
        key: SigningKey,
        believed: PublicKeys,
        namespace: str,
        plan: BundlerPlan,
        clock: Clock,
        metrics: Metrics,
        repairer: RecordRepairer,
        newest: Manifest | None = None,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._follower = follower
        self._store = store
        self._claims = claims
        self._key = key
        self._believed = believed
        self._namespace = namespace
        self._plan = plan
        self._clock = clock
        self._metrics = metrics
        self._repairer = repairer
        self._seconds = seconds
        self._written = newest
        """The bundle from which the state's changes are counted."""
        self.newest = newest
        """The newest bundle in the store, as far as is known here."""
        self.last_outcome: Outcome | None = None
        self.detail = ""
        """The reason why the last turn wrote nothing."""
        self.progress_at = seconds()
        self._due_at = seconds()
        self._snapshot_times: dict[str, Micros] = {}
        metrics.gauge("consentry_bundle_age_seconds").set_function(self.age_seconds)
        metrics.gauge("consentry_members_quarantined").set_function(
            lambda: float(len(follower.state.damaged))
        )

    def run(self, stopping: threading.Event) -> None:
        """Write bundles until `stopping` is set.

        Raises PositionLost where the log no longer holds the message that is to be read next.
        """
        while not stopping.is_set():
            self.step()

    def step(self, wait_seconds: float = 0.1) -> None:
        """Take in what is in the log, and write a bundle when one is due."""
        self._follower.step(wait_seconds)
        self.progress_at = self._seconds()
        if self.progress_at >= self._due_at and self._follower.is_caught_up:
            self._turn()
            self.progress_at = self._seconds()

    def age_seconds(self) -> float:
        """Return how long ago the newest bundle was proven fresh; infinite without a bundle."""
        newest = self.newest
        if newest is None:
            return math.inf
        return (self._clock() - newest.proven_at) / 1e6

    def stale_detail(self) -> str:
        """Return why the bundler's state is not proven fresh; empty where it is."""
        if not self._follower.is_caught_up:
            return "what was there at the start has not all been read"
        age = self._follower.state.freshness.staleness_seconds(self._clock())
        return stale_age("the least fresh partition", age, self._plan.staleness_seconds)

    def status(self) -> dict[str, Any]:
        """Return the state of this bundler as an operator asks for it, without member ids.

        It is `ok` while the state is fresh and a bundle is known.
        """
        stale, newest, age = self.stale_detail(), self.newest, self.age_seconds()
        return {
            "ok": not stale and newest is not None,
            "detail": stale or self.detail or "fresh",
            "outcome": self.last_outcome,
            "sequence": None if newest is None else newest.sequence,
            "bundle_age_seconds": None if newest is None else round(age, 1),
            "members": len(self._follower.state),
            "members_quarantined": len(self._follower.state.damaged),
            "regressions_open": self._repairer.open_count,
        }

    # ---- one turn

    def _turn(self) -> None:
        try:
            outcome, self.detail = self._write_if_ours()
        except ConsentryError as error:
            outcome, self.detail = "failed", error.message
            _LOG.warning("bundle_failed", code=error.code, detail=error.message)
        self._metrics.counter("consentry_bundles_total", outcome).inc()
        if outcome != self.last_outcome and outcome not in WRITTEN and outcome != "failed":
            _LOG.info("no_bundle", outcome=outcome, detail=self.detail)
        self.last_outcome = outcome
        pause_seconds = self._plan.every_seconds
        if outcome not in WRITTEN:
            pause_seconds = min(pause_seconds, _RETRY_SECONDS)
        self._due_at = self._seconds() + pause_seconds

    def _write_if_ours(self) -> tuple[Outcome, str]:
        """Write and publish one bundle if the state is fresh and no other bundler is at work.

        Returns the outcome and why nothing was written. Raises as the store does.
        """
        pointer = self._read_pointer()
        stale = self.stale_detail()
        if stale:
            return "stale", stale
        other = self._other_at_work(pointer)
        if other:
            return "standby", other
        sequence = self._claims.take(1 if pointer is None else pointer.sequence + 1)
        if sequence is None:
            return "standby", "another bundler is writing a bundle"
        parent = self._parent(pointer, sequence)
        manifest = write_bundle(
            self._store,
            self._follower.state,
            key=self._key,
            namespace=self._namespace,
            sequence=sequence,
            created_at=self._clock(),
            parent=parent,
        )
        # From here on the state's changes are counted from this bundle, published or not.
        self._written = manifest
        if self._is_overtaken(pointer, sequence):
            return "conflict", "another bundler published meanwhile"
        publish(self._store, manifest, key=self._key)
        self.newest = manifest
        _LOG.info(
            "bundle",
            kind=manifest.kind,
            sequence=sequence,
            members=manifest.members,
            controls=manifest.controls_count,
            deltas=manifest.deltas,
        )
        self._prune(manifest)
        return manifest.kind, ""

    def _read_pointer(self) -> Pointer | None:
        """Return the pointer to the newest bundle in the store, and set `newest` to that bundle.

        Raises BundleRefused, Unavailable.
        """
        try:
            pointer = latest(self._store, self._believed)
        except Unavailable as error:
            if error.code != "bundle.none":
                raise
            self.newest = None
            return None
        if self.newest is None or self.newest.sha256 != pointer.manifest_sha256:
            bundle = open_bundle(
                self._store,
                keys=self._believed,
                namespace=self._namespace,
                now=self._clock(),
                bundle_id=pointer.bundle_id,
            )
            self.newest = bundle.manifest
        return pointer

    def _other_at_work(self, pointer: Pointer | None) -> str:
        """Return why another bundler should go on and not this one; else empty."""
        if pointer is None or self._is_ours(pointer):
            return ""
        if self._written is not None and pointer.sequence < self._written.sequence:
            # A bundler that was frozen put an older one back after ours.
            _LOG.error(
                "bundle_pointer_went_back", found=pointer.sequence, ours=self._written.sequence
            )
            return ""
        if self._claims.of(pointer.sequence).writer == self._claims.writer:
            return ""
        age = (self._clock() - pointer.created_at) / 1e6
        if age > self._plan.silent_seconds:
            return ""
        return f"another bundler published {age:.0f} s ago"

    def _is_ours(self, pointer: Pointer) -> bool:
        return self._written is not None and pointer.manifest_sha256 == self._written.sha256

    def _parent(self, pointer: Pointer | None, sequence: int) -> Manifest | None:
        """Return the bundle to build a delta on; None where a snapshot is due."""
        written = self._written
        if written is None or pointer is None or not self._is_ours(pointer):
            return None
        if sequence != written.sequence + 1:
            return None
        if written.deltas + 1 >= self._plan.snapshot_every:
            return None
        reason = why_no_delta(written, self._follower.state)
        if reason:
            _LOG.info("snapshot_due", detail=reason)
            return None
        return written

    def _is_overtaken(self, pointer: Pointer | None, sequence: int) -> bool:
        """Say whether somebody claimed a higher number, or published, since `pointer` was read."""
        highest = self._claims.highest()
        if highest is None or highest.sequence != sequence:
            return True
        newer = self._read_pointer()
        if pointer is None or newer is None:
            return pointer is not newer
        return pointer.manifest_sha256 != newer.manifest_sha256

    # ---- what is kept

    def _prune(self, newest: Manifest) -> None:
        """Delete the bundles that no chain needs which was the newest within `keep_seconds`.

        A failure is tried again next time.
        """
        try:
            deleted = prune(self._store, newest=newest, keep=self._snapshots_kept(newest))
        except ConsentryError as error:
            _LOG.warning("prune_failed", code=error.code)
            return
        if deleted:
            _LOG.info("pruned", bundles=len(deleted))

    def _snapshots_kept(self, newest: Manifest) -> int:
        """Return how many snapshots, the newest first, reach back to one older than `keep_seconds`.

        The bundles on that one were the newest at that moment, and a slow reader may be in the
        middle of them.
        """
        bound = newest.created_at - int(self._plan.keep_seconds * 1_000_000)
        first_of_chain = newest.sequence - newest.deltas
        times: dict[str, Micros] = {}
        sequences: set[int] = set()
        old_sequences: set[int] = set()
        for bundle_id in self._store.bundle_ids():
            sequence = int(bundle_id[:10])
            if "-snapshot-" not in bundle_id or sequence > first_of_chain:
                continue
            sequences.add(sequence)
            made_at = self._made_at(bundle_id)
            if made_at is not None:
                times[bundle_id] = made_at
                if made_at <= bound:
                    old_sequences.add(sequence)
        self._snapshot_times = times
        for count, sequence in enumerate(sorted(sequences, reverse=True), start=1):
            if sequence in old_sequences:
                return count
        return max(1, len(sequences))

    def _made_at(self, bundle_id: str) -> Micros | None:
        """Return when a snapshot was made; None for one that is not whole or not believed."""
        known = self._snapshot_times.get(bundle_id)
        if known is not None:
            return known
        try:
            bundle = open_bundle(
                self._store,
                keys=self._believed,
                namespace=None,
                now=self._clock(),
                bundle_id=bundle_id,
            )
        except BundleRefused:
            return None
        return bundle.manifest.created_at


def went_back(
    messages: Iterable[StoredMessage], newest: Callable[[bytes], bytes | None]
) -> Iterator[Regression]:
    """Yield a regression of each record in the bundler's log that went back to an older version.

    The member's last record in the log is then not the newest.

    `messages` are those of `records`, per partition in the log's order, read after the follower had
    caught up. A bundler that goes on from a bundle does not see a record that went back before, or
    while no bundler ran: this finds it.
    """
    behind: dict[bytes, Regression] = {}
    for message in messages:
        if not message.key or not message.value:
            continue
        known = newest(message.key)
        if known is not None and version_of(message.value) < version_of(known):
            behind[message.key] = Regression(message.partition, message.key, known, message.value)
        else:
            behind.pop(message.key, None)
    yield from behind.values()
