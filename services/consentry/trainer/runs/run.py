"""A training run: registers what is read for what, filters while it reads, stops in time, and
writes a certificate.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Literal, Self

import structlog

from consentry.bundles.keys import SigningKey
from consentry.domain.errors import ConsentryError, InvalidInput, Unavailable
from consentry.domain.values import DATASET_PATTERN, Micros, Reason, parse_name
from consentry.ops.clock import Clock, system_clock
from consentry.trainer.deciding.decide_table import Columns
from consentry.trainer.runs.batches import RunBatch, batch_of, batches, is_batch
from consentry.trainer.runs.certificates import FORMAT, LIMIT, canonical, write_certificate
from consentry.trainer.runs.certificates.reads import LEAF
from consentry.trainer.runs.errors import ConsentStale, LeaseRevoked, RunClosed
from consentry.trainer.runs.lease import Lease, LeaseCondition, RunDecider
from consentry.trainer.runs.observers import RunChange, RunObserver
from consentry.trainer.runs.read_log import (
    SPOOL_ROWS,
    SPOOL_SECONDS,
    ReadLog,
    Summary,
    Summing,
    opened,
    pieces,
    read_rows,
)
from consentry.trainer.runs.reexamine import (
    CANNOT_TELL,
    EXCLUDED_WHATEVER_THE_ROW,
    VIOLATED,
    Examined,
    examine,
    exclusions,
    proven_at,
)
from consentry.trainer.runs.store import (
    CERTIFICATE_FILE,
    END_FILE,
    READS_FILE,
    START_FILE,
    RunFolder,
    RunStore,
)
from consentry.wire.tokens import TokenKeys, write_token

LEASE_SECONDS: Final = 5.0
RUN_FORMAT: Final = "consentry-run/1"
DISJOINT: Final = (
    "each read was decided once more under the view at the end, as of its first and last time, by "
    "what had been "
    "recorded lease_micros before; a violation was excluded by everything the run may have known"
)
_VERSION_MAX: Final = 512
_LOG = structlog.get_logger(__name__)

Shard = str | Callable[[Any], str]
"""The file or part that batches come from, or what tells it of a batch."""
State = Literal["NOT STARTED", "RUNNING", "COMPLETED", "ABORTED"]


class TrainingRun:
    """Reads training data for one purpose, handing out only what may be used at the moment it is
    handed out.

    A context manager: entering registers the run in `store`, an fsspec URL, leaving writes its
    certificate. `decider` is the client, or SnapshotDecider. `lease_seconds` is the bound within
    which freshness has to be proven; `stale="wait"` waits for it, at most `wait_seconds`, instead
    of stopping at once. `conditions` may take the lease back for other reasons. `watchers` are told
    of beginning and end.

    Raises ConsentStale or LeaseRevoked at the next batch when the lease is lost, and hands out
    nothing in it again: the run is ABORTED, with the reason, and what it has read is recorded.
    Raises Unavailable where the store cannot be written to: what cannot be recorded is not handed
    out.
    """

    def __init__(
        self,
        decider: RunDecider,
        *,
        dataset: str,
        purpose: str,
        store: str,
        subscriber: str,
        dataset_version: str = "",
        columns: Columns | None = None,
        lease_seconds: float = LEASE_SECONDS,
        stale: Literal["raise", "wait"] = "raise",
        wait_seconds: float = 60.0,
        conditions: Sequence[LeaseCondition] = (),
        signing_key: SigningKey | None = None,
        token_keys: TokenKeys | None = None,
        spool_seconds: float = SPOOL_SECONDS,
        spool_rows: int = SPOOL_ROWS,
        watchers: Sequence[RunObserver] = (),
        clock: Clock = system_clock,
    ) -> None:
        if DATASET_PATTERN.fullmatch(dataset) is None:
            raise InvalidInput(
                f"The data set {dataset[:80]!r} is not 1 to 128 letters, digits, '_', '.' or '-', "
                "a letter or digit "
                "first.",
                code="input.dataset",
                fix="name it as it is named in receipts",
            )
        if signing_key is not None and not isinstance(signing_key, SigningKey):
            # It is needed only when all has been read.
            raise InvalidInput(
                f"signing_key is a {type(signing_key).__name__}, not a SigningKey.",
                code="input.signing_key",
                fix="pass SigningKey.read(path), from consentry.bundles",
            )
        if len(dataset_version) > _VERSION_MAX:
            raise InvalidInput(
                f"The data set's version has {len(dataset_version)} characters, more than "
                f"{_VERSION_MAX}.",
                code="input.dataset_version",
                fix="give a digest, a snapshot id or a commit",
            )
        if (
            stale not in ("raise", "wait")
            or not 0 < lease_seconds <= 3600
            or wait_seconds < 0
            or spool_seconds < 0
        ):
            raise InvalidInput(
                f"A run with stale={stale!r}, lease_seconds={lease_seconds:g}, "
                f"wait_seconds={wait_seconds:g} and "
                f"spool_seconds={spool_seconds:g} cannot be.",
                code="input.run",
                fix="say 'raise' or 'wait', a lease of up to 3600 seconds, and no negative time",
            )
        self.run_id: Final = str(uuid.uuid4())
        self.dataset: Final = dataset
        self.dataset_version: Final = dataset_version
        self.purpose: Final = parse_name(purpose, what="purpose")
        self.subscriber: Final = subscriber
        self.state: State = "NOT STARTED"
        self.reason = ""
        """Why it was aborted; empty otherwise."""
        self.counts: Counter[Reason] = Counter()
        """Rows by the reason of their answer, those that were handed out among them."""
        self.batches = self.batches_empty = 0
        self.certificate: dict[str, Any] | None = None
        """What the certificate states, once the run is complete."""
        self.folder: Final[RunFolder] = RunStore(store).folder(self.run_id)
        self._decider = decider
        self._columns = columns
        self._clock = clock
        self._lease_micros = Micros(round(lease_seconds * 1e6))
        self._lease = Lease(
            decider,
            clock,
            seconds=lease_seconds,
            wait_seconds=wait_seconds if stale == "wait" else 0.0,
            conditions=conditions,
        )
        self._signing_key = signing_key
        self._token_keys = token_keys or TokenKeys()
        self._spool = {"spool_seconds": spool_seconds, "spool_rows": spool_rows}
        self._watchers = tuple(watchers)
        self._log: ReadLog | None = None
        self._start: dict[str, Any] = {}
        self._handing_out = threading.RLock()

    # ---- beginning and end

    def __enter__(self) -> Self:
        if self.state != "NOT STARTED":
            raise RunClosed(self.state)
        self._lease.require()
        self._start = {
            "format": RUN_FORMAT,
            "run_id": self.run_id,
            "dataset": self.dataset,
            "dataset_version": self.dataset_version,
            "purpose": self.purpose,
            "subscriber": self.subscriber,
            "started_at": self._now(),
            **self._view_now("start"),
            "lease_micros": self._lease_micros,
            "tail_micros": round(self._spool["spool_seconds"] * 1e6),
            "tail_rows": 0 if self._spool["spool_seconds"] == 0 else self._spool["spool_rows"],
            "software": f"consentry {version('consentry')}",
        }
        self.folder.write(START_FILE, canonical(self._start) + b"\n")
        self._log = ReadLog(self.folder, self._clock, **self._spool)  # type: ignore[arg-type]
        self.state = "RUNNING"
        self._tell()
        _LOG.info(
            "training_run_started", run=self.run_id, dataset=self.dataset, purpose=self.purpose
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._handing_out:
            if self.state == "RUNNING" and isinstance(error, ConsentryError):
                self._abort(error.code, error.message)
            elif self.state == "RUNNING" and kind is not None:
                self._abort(kind.__name__, "")  # its words may hold what was read
            elif self.state == "RUNNING":
                self._complete()

    def revoke(self, reason: str) -> None:
        """Have nothing more handed out; may be called from any thread.

        The next batch raises LeaseRevoked.
        """
        self._lease.revoke(reason)

    # ---- reading

    def filter(self, given: Any, *, shard: Shard = "", columns: Columns | None = None) -> Any:
        """What may be used of one batch, or, of anything that gives batches, a generator of what
        may be used of each.

        A batch is an Arrow table or record batch, a Polars or pandas frame, or a mapping of columns
        (lists, arrays, tensors), and comes back as the same. Of a loader each batch is decided when
        it is asked for, never earlier; one of which nothing is left is counted and left out.
        `shard` says in the record of reads where batches come from. Raises ConsentStale,
        LeaseRevoked, InvalidInput, Unavailable.
        """
        columns = self._columns if columns is None else columns
        if is_batch(given):
            return self._filtered(
                batch_of(given, columns), shard if isinstance(shard, str) else shard(given)
            )[0]
        return self._each(given, shard, columns)

    def _each(self, given: Any, shard: Shard, columns: Columns | None) -> Iterator[Any]:
        for one in batches(given):
            kept, rows = self._filtered(
                batch_of(one, columns), shard if isinstance(shard, str) else shard(one)
            )
            if rows:
                yield kept

    def _filtered(self, batch: RunBatch, shard: str) -> tuple[Any, int]:
        """What may be used of a batch now, and how many rows these are; recorded before it is
        handed out.
        """
        with self._handing_out:
            try:
                return self._hand_out(batch, shard)
            except (ConsentStale, LeaseRevoked) as error:
                if self.state == "RUNNING":
                    self._abort(error.code, error.message)
                raise

    def _hand_out(self, batch: RunBatch, shard: str) -> tuple[Any, int]:
        while True:
            self._require_running()
            self._lease.require()
            # Before the question: a control that comes in between tells apart what this run could
            # not know of.
            cut_offs, at = self._decider.snapshot.boundaries.cut_offs, self._now()
            decisions = self._decider.decide_table(
                batch.table, purpose=self.purpose, columns=batch.columns
            )
            counts, mask = decisions.counts(), decisions.mask
            if Reason.STALE in counts:
                continue  # freshness was lost in between: the lease says what is to be done
            rows = int(mask.sum())
            log = self._log
            assert log is not None
            if rows:
                log.record(
                    read_rows(batch.table, batch.columns).reads(
                        mask, shard=shard, at=at, cut_offs=cut_offs
                    )
                )
            self._lease.require()
            if self._now() - at > self._lease_micros:
                continue  # the store took so long that the answer is no longer one of now
            self.batches += 1
            self.batches_empty += not rows
            self.counts.update(counts)
            return batch.kept(mask), rows

    def _require_running(self) -> None:
        if (lost := self._lease.lost) is not None:
            raise lost
        if self.state != "RUNNING":
            raise RunClosed(self.state)

    def _now(self) -> Micros:
        """The time that answers are about, as the client has it: never before what is proven."""
        return max(self._clock(), self._decider.snapshot.newest_frontier)

    def _view_now(self, when: str) -> dict[str, Any]:
        """What the view is now. Raises ConsentStale where no proof of freshness was ever given."""
        snapshot = self._decider.snapshot
        known_at = proven_at(snapshot)
        if known_at is None:
            raise ConsentStale("the view was never proven fresh")
        token = snapshot.freshness.token(snapshot.positions, self._clock())
        return {
            f"view_{when}": self._decider.snapshot_id,
            f"token_{when}": "" if token is None else write_token(token, self._token_keys),
            f"known_at_{when}": known_at,
        }

    # ---- closing

    def _abort(self, code: str, message: str) -> None:
        """Close the run without a certificate; what was read so far is recorded."""
        self.state, self.reason = "ABORTED", f"{code}: {message}" if message else code
        log = self._log
        assert log is not None
        try:
            log.flush()
            self._write_end()
        except Unavailable as error:
            # What stopped the run is to be heard of, not this; without its end the run counts as
            # unfinished.
            _LOG.critical("training_run_not_recorded", run=self.run_id, exc_info=error)
        self._tell()
        _LOG.warning("training_run_aborted", run=self.run_id, code=code)

    def _complete(self) -> None:
        """Write the reads, the certificate and the end, in this order.

        Raises ConsentStale, LeaseRevoked.
        """
        log = self._log
        assert log is not None
        try:
            self._lease.require()
            end = {"ended_at": self._now(), **self._view_now("end")}
        except (ConsentStale, LeaseRevoked) as error:
            self._abort(error.code, error.message)
            raise
        self.state = "COMPLETED"  # from here on nothing is handed out, whatever becomes of the rest
        try:
            log.merge()
            self.certificate = self._statement(end)
            self.folder.write(
                CERTIFICATE_FILE, write_certificate(self.certificate, self._signing_key)
            )
            self._write_end()
        except ConsentryError as error:
            self._abort(error.code, error.message)
            raise
        self.folder.remove_parts(merged_only=False)
        self._tell()
        _LOG.info("training_run_completed", run=self.run_id, rows=self.certificate["rows_read"])

    def _tell(self) -> None:
        told = RunChange(
            self.state, self.reason, self._now(), self.folder.url, self._start, self.certificate
        )
        for watcher in self._watchers:
            try:
                watcher.told(told)
            except Exception as error:  # noqa: BLE001 - whatever a lineage service does, the run is what it is
                _LOG.error(
                    "training_run_not_told",
                    run=self.run_id,
                    watcher=type(watcher).__name__,
                    exc_info=error,
                )

    def _write_end(self) -> None:
        end = {
            "run_id": self.run_id,
            "state": self.state,
            "reason": self.reason,
            "ended_at": self._now(),
        }
        self.folder.write(END_FILE, canonical(end | self._numbers()) + b"\n")

    def _numbers(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "batches_empty": self.batches_empty,
            "rows_seen": self.counts.total(),
            "counts": {reason.value: self.counts[reason] for reason in sorted(self.counts)},
        }

    def _statement(self, end: dict[str, Any]) -> dict[str, Any]:
        """All that the certificate says."""
        snapshot = self._decider.snapshot
        summary, outcomes = self._examined()
        excluded = exclusions(
            snapshot, purpose=self.purpose, at=end["ended_at"], known_at=end["known_at_end"]
        )
        violations, unclear = outcomes[VIOLATED].total(), outcomes[CANNOT_TELL].total()
        return {
            **self._start,
            **end,
            **self._numbers(),
            "format": FORMAT,
            "rows_read": summary.rows,
            "members_read": summary.members,
            "reads": {
                "leaves": summary.leaves,
                "leaf": LEAF,
                "tree": "RFC 6962, SHA-256",
                "merkle_root": summary.root.hex(),
                "first_read_at": summary.first_read_at,
                "last_read_at": summary.last_read_at,
            },
            "exclusions": {
                "members": excluded.members,
                "digest": excluded.digest,
                "definition": EXCLUDED_WHATEVER_THE_ROW,
            },
            "disjoint": {
                "holds": not violations and not unclear,
                "violations": violations,
                "unclear": unclear,
                "how": DISJOINT,
            },
            "limit": LIMIT,
        }

    def _examined(self) -> tuple[Summary, dict[int, Counter[Reason]]]:
        """What the merged reads come to, and what the view at the end says of them."""
        summing, outcomes = Summing(), {VIOLATED: Counter[Reason](), CANNOT_TELL: Counter[Reason]()}
        with opened(self.folder, [READS_FILE]) as (file,):
            for piece in pieces(file):
                summing.add(piece)
                found: Examined = examine(
                    self._decider.snapshot, piece, purpose=self.purpose, bound=self._lease_micros
                )
                for outcome, counts in outcomes.items():
                    counts.update(found.counts(outcome))
        return summing.summary(), outcomes
