"""The bundler: follow, publish a bundle every so often, delete what nobody needs, and heal records
that went back.
"""

from __future__ import annotations

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
"""So long one turn may take, the writing of a whole snapshot included, before the bundler counts as
dead.
"""
_RETRY_SECONDS: Final = 1.0
_SILENT_TURNS: Final = 3
_SILENT_SECONDS: Final = 10.0
_LOG = structlog.get_logger(__name__)

Outcome = Literal["snapshot", "delta", "stale", "standby", "conflict", "failed"]
WRITTEN: Final = frozenset({"snapshot", "delta"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlerPlan:
    """How often, and what is kept. Times in seconds;

    `snapshot_every` is how many bundles share one snapshot.
    """

    every_seconds: float
    snapshot_every: int
    keep_seconds: float
    staleness_seconds: float
    claim_seconds: float = CLAIM_SECONDS

    @property
    def silent_seconds(self) -> float:
        """So old the newest bundle of another bundler is when that one counts as gone."""
        return max(_SILENT_TURNS * self.every_seconds, _SILENT_SECONDS)


class StateFollower(Protocol):
    """Keeps a state up to date; see Follower."""

    state: BundleState

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that was there at the start has been read."""

    def step(self, timeout_seconds: float = 0.1) -> int:
        """Wait at most so long for messages and take in what is there; how many there were."""


class Bundler:
    """Writes bundles of what the follower holds, one after another;

    `step` is to be called all the time.

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
        healer: RecordRepairer,
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
        self._healer = healer
        self._seconds = seconds
        self._written = newest
        """What the state's changes are counted from."""
        self.newest = newest
        """The newest bundle in the store, as far as is known here."""
        self.last_outcome: Outcome | None = None
        self.detail = ""
        """Why the last turn wrote nothing."""
        self.progress_at = seconds()
        self._due_at = seconds()
        self._snapshot_times: dict[str, Micros] = {}
        metrics.gauge("consentry_bundle_age_seconds").set_function(self.age_seconds)
        metrics.gauge("consentry_members_held").set_function(
            lambda: float(len(follower.state.damaged))
        )

    def run(self, stopping: threading.Event) -> None:
        """Go on until told to stop.

        Raises Unavailable where the log no longer holds what was to be read next.
        """
        while not stopping.is_set():
            self.step()

    def step(self, wait_seconds: float = 0.1) -> None:
        """Take in what is there, and write a bundle when one is due."""
        self._follower.step(wait_seconds)
        self.progress_at = self._seconds()
        if self.progress_at >= self._due_at and self._follower.is_caught_up:
            self._turn()
            self.progress_at = self._seconds()

    def age_seconds(self) -> float:
        """How long ago the newest bundle was proven fresh; infinite where there is none."""
        newest = self.newest
        return float("inf") if newest is None else (self._clock() - newest.proven_at) / 1e6

    def stale_detail(self) -> str:
        """Why what is held is not proven fresh; empty where it is."""
        if not self._follower.is_caught_up:
            return "what was there at the start has not all been read"
        age = self._follower.state.freshness.staleness_seconds(self._clock())
        return stale_age("the least fresh partition", age, self._plan.staleness_seconds)

    def status(self) -> dict[str, Any]:
        """What an operator asks first; ready is who is fresh and knows of a bundle. No member
        ids.
        """
        stale, newest, age = self.stale_detail(), self.newest, self.age_seconds()
        return {
            "ok": not stale and newest is not None,
            "detail": stale or self.detail or "fresh",
            "outcome": self.last_outcome,
            "sequence": None if newest is None else newest.sequence,
            "bundle_age_seconds": None if newest is None else round(age, 1),
            "members": len(self._follower.state),
            "members_held": len(self._follower.state.damaged),
            "regressions_open": self._healer.open_count,
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
        pause = self._plan.every_seconds
        self._due_at = self._seconds() + (
            pause if outcome in WRITTEN else min(pause, _RETRY_SECONDS)
        )

    def _write_if_ours(self) -> tuple[Outcome, str]:
        """Write and publish one bundle, unless it is not proven fresh, or somebody else's turn.

        Raises as the store.
        """
        found = self._look()
        stale = self.stale_detail()
        if stale:
            return "stale", stale
        other = self._other_at_work(found)
        if other:
            return "standby", other
        sequence = self._claims.take(1 if found is None else found.sequence + 1)
        if sequence is None:
            return "standby", "another bundler is writing a bundle"
        parent = self._parent(found, sequence)
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
        if self._is_overtaken(found, sequence):
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

    def _look(self) -> Pointer | None:
        """Which bundle is the newest in the store; `newest` follows it.

        Raises BundleRefused, Unavailable.
        """
        try:
            found = latest(self._store, self._believed)
        except Unavailable as error:
            if error.code != "bundle.none":
                raise
            self.newest = None
            return None
        if self.newest is None or self.newest.sha256 != found.manifest_sha256:
            bundle = open_bundle(
                self._store,
                keys=self._believed,
                namespace=self._namespace,
                now=self._clock(),
                bundle_id=found.bundle_id,
            )
            self.newest = bundle.manifest
        return found

    def _other_at_work(self, found: Pointer | None) -> str:
        """Why another bundler is to go on and not this one; empty where it is ours to do."""
        if found is None or self._is_ours(found):
            return ""
        if self._written is not None and found.sequence < self._written.sequence:
            # Somebody who was frozen put an older one back after ours.
            _LOG.error(
                "bundle_pointer_went_back", found=found.sequence, ours=self._written.sequence
            )
            return ""
        if self._claims.of(found.sequence).writer == self._claims.writer:
            return ""
        age = (self._clock() - found.created_at) / 1e6
        if age > self._plan.silent_seconds:
            return ""
        return f"another bundler published {age:.0f} s ago"

    def _is_ours(self, found: Pointer) -> bool:
        return self._written is not None and found.manifest_sha256 == self._written.sha256

    def _parent(self, found: Pointer | None, sequence: int) -> Manifest | None:
        """The bundle to build a delta on; None where a snapshot is due."""
        written = self._written
        if (
            written is None
            or found is None
            or not self._is_ours(found)
            or sequence != written.sequence + 1
        ):
            return None
        if written.deltas + 1 >= self._plan.snapshot_every:
            return None
        reason = why_no_delta(written, self._follower.state)
        if reason:
            _LOG.info("snapshot_due", detail=reason)
            return None
        return written

    def _is_overtaken(self, found: Pointer | None, sequence: int) -> bool:
        """Whether somebody claimed a higher number, or published, since the look that this bundle
        rests on.
        """
        highest = self._claims.highest()
        if highest is None or highest.sequence != sequence:
            return True
        before = None if found is None else found.manifest_sha256
        now = self._look()
        return (None if now is None else now.manifest_sha256) != before

    # ---- what is kept

    def _prune(self, newest: Manifest) -> None:
        """Delete what no chain that was the newest within `keep_seconds` needs.

        A failure is tried again next time.
        """
        try:
            gone = prune(self._store, newest=newest, keep=self._snapshots_kept(newest))
        except ConsentryError as error:
            _LOG.warning("prune_failed", code=error.code)
            return
        if gone:
            _LOG.info("pruned", bundles=len(gone))

    def _snapshots_kept(self, newest: Manifest) -> int:
        """How many snapshots, counted from the newest, reach back to one that was made before
        `keep_seconds`.

        The bundles on that one were the newest at that moment, and a slow reader may be in the
        middle of them.
        """
        bound = newest.created_at - int(self._plan.keep_seconds * 1_000_000)
        first_of_chain = newest.sequence - newest.deltas
        snapshots = [
            one
            for one in self._store.bundle_ids()
            if "-snapshot-" in one and int(one[:10]) <= first_of_chain
        ]
        times = {one: self._made_at(one) for one in snapshots}
        self._snapshot_times = {one: time for one, time in times.items() if time is not None}
        sequences = sorted({int(one[:10]) for one in snapshots}, reverse=True)
        old_enough = {int(one[:10]) for one, time in self._snapshot_times.items() if time <= bound}
        return next(
            (count for count, one in enumerate(sequences, 1) if one in old_enough),
            max(1, len(sequences)),
        )

    def _made_at(self, bundle_id: str) -> Micros | None:
        """When a snapshot was made;

        None for one that is not whole or not believed, which tells no time.
        """
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
    """Every member of whom the log's last record is older than the newest that is held.

    `messages` are those of `records`, per partition in the log's order, read after the follower had
    caught up. What went back before a bundler died, or while none ran, is not seen by one that goes
    on from a bundle: this finds it.
    """
    behind: dict[bytes, Regression] = {}
    for message in messages:
        if not message.key or not message.value:
            continue
        held = newest(message.key)
        if held is not None and version_of(message.value) < version_of(held):
            behind[message.key] = Regression(message.partition, message.key, held, message.value)
        else:
            behind.pop(message.key, None)
    yield from behind.values()
