"""A training run: filters and records what is read, stops in time, writes a certificate."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import structlog

from consentry.bundles.keys import SigningKey
from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.values import Micros, Reason, parse_name
from consentry.ops.clock import Clock, system_clock
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.runs.batches import RunBatch, each_batch, is_batch, read_batch
from consentry.trainer.runs.certificates import canonical, write_certificate
from consentry.trainer.runs.certify import certificate_statement
from consentry.trainer.runs.errors import ConsentStale, LeaseRevoked, RunClosed
from consentry.trainer.runs.lease import Lease, LeaseCondition, RunDecider
from consentry.trainer.runs.observers import RunChange, RunObserver
from consentry.trainer.runs.options import (
    check_dataset,
    check_dataset_version,
    check_signing_key,
    check_times,
)
from consentry.trainer.runs.read_log import SPOOL_ROWS, SPOOL_SECONDS, ReadLog
from consentry.trainer.runs.reexamine import proven_at
from consentry.trainer.runs.store import (
    CERTIFICATE_FILE,
    END_FILE,
    RUN_FORMAT,
    START_FILE,
    RunFolder,
    RunStore,
)
from consentry.wire.tokens import TokenKeys, write_token

LEASE_SECONDS: Final = 5.0
_LOG = structlog.get_logger(__name__)

Shard = str | Callable[[Any], str]
"""The file or part that batches come from, or a function that returns it for a batch."""
State = Literal["NOT STARTED", "RUNNING", "COMPLETED", "ABORTED"]


class _HandedOut(NamedTuple):
    """The rows of one batch that may be used, in the batch's own kind, and their number."""

    rows: Any
    row_count: int


class TrainingRun:
    """A training run: reads data for one purpose, hands out only rows usable at that moment.

    A context manager: entering registers the run in `store`, an fsspec URL; leaving writes its
    certificate. `decider` is the client, or SnapshotDecider. Freshness has to be proven to within
    `lease_seconds`; `stale="wait"` waits for it, at most `wait_seconds`, instead of stopping at
    once. `conditions` may take the lease back for other reasons. `observers` hear of the beginning
    and the end.

    Raises ConsentStale or LeaseRevoked at the next batch when the lease is lost, and hands out
    nothing more: the run is ABORTED, with the reason, and what it has read is recorded. Raises
    Unavailable where the store cannot be written to: what cannot be recorded is not handed out.
    """

    state: State = "NOT STARTED"
    reason: str = ""
    """The reason why the run was aborted; empty otherwise."""
    batches: int = 0
    batches_empty: int = 0
    certificate: dict[str, Any] | None = None
    """The statement of the certificate, once the run is complete."""

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
        observers: Sequence[RunObserver] = (),
        clock: Clock = system_clock,
    ) -> None:
        check_dataset(dataset)
        check_signing_key(signing_key)
        check_dataset_version(dataset_version)
        check_times(stale, lease_seconds, wait_seconds, spool_seconds)
        self.run_id: Final = str(uuid.uuid4())
        self.dataset: Final = dataset
        self.dataset_version: Final = dataset_version
        self.purpose: Final = parse_name(purpose, what="purpose")
        self.subscriber: Final = subscriber
        self.counts: Counter[Reason] = Counter()
        """Rows by the reason of their answer; rows that were handed out are among them."""
        self.folder: Final[RunFolder] = RunStore(store).folder(self.run_id)
        self._decider = decider
        self._columns = columns
        self._clock = clock
        self._lease_micros = _micros(lease_seconds)
        if stale != "wait":
            wait_seconds = 0.0
        self._lease = Lease(
            decider, clock, seconds=lease_seconds, wait_seconds=wait_seconds, conditions=conditions
        )
        self._signing_key = signing_key
        self._token_keys = token_keys or TokenKeys()
        self._spool_seconds = spool_seconds
        self._spool_rows = spool_rows
        self._observers = tuple(observers)
        self._opened_read_log: ReadLog | None = None
        self._start: dict[str, Any] = {}
        self._handing_out = threading.RLock()

    # ---- beginning and end

    def __enter__(self) -> Self:
        if self.state != "NOT STARTED":
            raise RunClosed(self.state)
        self._lease.require()
        self._start = self._describe_start()
        self.folder.write(START_FILE, canonical(self._start) + b"\n")
        self._opened_read_log = ReadLog(
            self.folder,
            self._clock,
            spool_seconds=self._spool_seconds,
            spool_rows=self._spool_rows,
        )
        self.state = "RUNNING"
        self._notify_observers()
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
            if self.state != "RUNNING":
                return
            if isinstance(error, ConsentryError):
                self._abort(error.code, error.message)
            elif kind is not None:
                self._abort(kind.__name__, "")  # its message may hold training data
            else:
                self._complete()

    def revoke(self, reason: str) -> None:
        """Have this training run hand out nothing more; any thread may call it.

        The next batch raises LeaseRevoked.
        """
        self._lease.revoke(reason)

    # ---- reading

    def filter(self, data: Any, *, shard: Shard = "", columns: Columns | None = None) -> Any:
        """Return the rows of a batch that this training run may use, or a generator for batches.

        Of many batches it gives the usable rows of each. A batch is an Arrow table or record
        batch, a Polars or pandas frame, or a mapping of columns (lists, arrays, tensors), and
        comes back as the same kind. Anything that gives batches is read one at a time: each batch
        is decided when it is asked for, never earlier. A batch with no usable row is counted and
        left out. `shard` names the origin of the batches in the record of reads.

        Raises ConsentStale, LeaseRevoked, InvalidInput, Unavailable.
        """
        if columns is None:
            columns = self._columns
        if is_batch(data):
            return self._filter_batch(data, shard, columns).rows
        return self._filter_each(data, shard, columns)

    def _filter_each(self, source: Any, shard: Shard, columns: Columns | None) -> Iterator[Any]:
        for data in each_batch(source):
            handed_out = self._filter_batch(data, shard, columns)
            if handed_out.row_count:
                yield handed_out.rows

    def _filter_batch(self, data: Any, shard: Shard, columns: Columns | None) -> _HandedOut:
        """Return the rows of one batch that may be used now; abort the run if the lease is lost."""
        batch = read_batch(data, columns)
        shard_name = shard if isinstance(shard, str) else shard(data)
        with self._handing_out:
            try:
                return self._hand_out(batch, shard_name)
            except (ConsentStale, LeaseRevoked) as error:
                if self.state == "RUNNING":
                    self._abort(error.code, error.message)
                raise

    def _hand_out(self, batch: RunBatch, shard: str) -> _HandedOut:
        """Decide a batch, record its reads, and return the usable rows.

        All of it is repeated until the answer is fresh at the moment of return.
        """
        while True:
            self._require_running()
            self._lease.require()
            # Before the decision: a control that arrives during it may bring a cut-off that this
            # answer did not know of.
            cut_offs = self._decider.snapshot.boundaries.cut_offs
            at = self._now()
            decisions = self._decider.decide_table(
                batch.table, purpose=self.purpose, columns=batch.columns
            )
            counts, mask = decisions.counts(), decisions.mask
            if Reason.STALE in counts:
                continue  # freshness was lost in between: the lease decides between wait and stop
            usable = int(mask.sum())
            if usable:
                self._read_log.record(batch, mask, shard=shard, at=at, cut_offs=cut_offs)
            self._lease.require()
            if self._now() - at > self._lease_micros:
                continue  # recording took so long that the answer is no longer fresh
            self.batches += 1
            self.batches_empty += not usable
            self.counts.update(counts)
            return _HandedOut(batch.keep_rows(mask), usable)

    def _require_running(self) -> None:
        lost = self._lease.lost
        if lost is not None:
            raise lost
        if self.state != "RUNNING":
            raise RunClosed(self.state)

    @property
    def _read_log(self) -> ReadLog:
        """The record of reads, which is there from the start on."""
        assert self._opened_read_log is not None
        return self._opened_read_log

    def _now(self) -> Micros:
        """Return the time that answers are about: as in the client, never before what is proven."""
        return max(self._clock(), self._decider.snapshot.newest_frontier)

    # ---- closing

    def _complete(self) -> None:
        """Write the reads, the certificate and the end, in this order.

        Raises ConsentStale, LeaseRevoked.
        """
        try:
            self._lease.require()
            end = {"ended_at": self._now(), **self._describe_snapshot("end")}
        except (ConsentStale, LeaseRevoked) as error:
            self._abort(error.code, error.message)
            raise
        self.state = "COMPLETED"  # from here on nothing is handed out, whatever happens to the rest
        try:
            self._read_log.merge()
            self._write_certificate(end)
            self._write_end()
        except ConsentryError as error:
            self._abort(error.code, error.message)
            raise
        self.folder.remove_parts(merged_only=False)
        self._notify_observers()
        assert self.certificate is not None
        _LOG.info("training_run_completed", run=self.run_id, rows=self.certificate["rows_read"])

    def _abort(self, code: str, message: str) -> None:
        """Close the run without a certificate; what was read so far is recorded."""
        self.state = "ABORTED"
        self.reason = f"{code}: {message}" if message else code
        try:
            self._read_log.flush()
            self._write_end()
        except Unavailable as error:
            # The error to raise is the one that stopped the run, not this one. Without its end the
            # run counts as unfinished.
            _LOG.critical("training_run_not_recorded", run=self.run_id, exc_info=error)
        self._notify_observers()
        _LOG.warning("training_run_aborted", run=self.run_id, code=code)

    def _notify_observers(self) -> None:
        change = RunChange(
            self.state, self.reason, self._now(), self.folder.url, self._start, self.certificate
        )
        for observer in self._observers:
            try:
                observer.on_run_event(change)
            except Exception as error:  # noqa: BLE001 - an error of a lineage service changes nothing in the run
                _LOG.error(
                    "training_run_observer_failed",
                    run=self.run_id,
                    observer=type(observer).__name__,
                    exc_info=error,
                )

    # ---- what is written of it

    def _describe_start(self) -> dict[str, Any]:
        """Return the content of run.json. Raises ConsentStale."""
        tail_rows = 0
        if self._spool_seconds:
            tail_rows = self._spool_rows
        return {
            "format": RUN_FORMAT,
            "run_id": self.run_id,
            "dataset": self.dataset,
            "dataset_version": self.dataset_version,
            "purpose": self.purpose,
            "subscriber": self.subscriber,
            "started_at": self._now(),
            **self._describe_snapshot("start"),
            "lease_micros": self._lease_micros,
            "tail_micros": _micros(self._spool_seconds),
            "tail_rows": tail_rows,
            "software": f"consentry {version('consentry')}",
        }

    def _describe_snapshot(self, when: Literal["start", "end"]) -> dict[str, Any]:
        """Return the fields that name what is known now.

        Raises ConsentStale where freshness was never proven.
        """
        snapshot = self._decider.snapshot
        known_at = proven_at(snapshot)
        if known_at is None:
            raise ConsentStale("freshness was never proven")
        token = snapshot.freshness.token(snapshot.positions, self._clock())
        snapshot_id = self._decider.snapshot_id
        token_text = ""
        if token is not None:
            token_text = write_token(token, self._token_keys)
        return {
            f"view_{when}": snapshot_id,
            f"token_{when}": token_text,
            f"known_at_{when}": known_at,
        }

    def _totals(self) -> dict[str, Any]:
        """Return the numbers of batches and rows so far."""
        return {
            "batches": self.batches,
            "batches_empty": self.batches_empty,
            "rows_seen": self.counts.total(),
            "counts": {reason.value: self.counts[reason] for reason in sorted(self.counts)},
        }

    def _write_certificate(self, end: Mapping[str, Any]) -> None:
        self.certificate = certificate_statement(
            self.folder,
            self._decider.snapshot,
            start=self._start,
            end=end,
            totals=self._totals(),
        )
        self.folder.write(CERTIFICATE_FILE, write_certificate(self.certificate, self._signing_key))

    def _write_end(self) -> None:
        end = {
            "run_id": self.run_id,
            "state": self.state,
            "reason": self.reason,
            "ended_at": self._now(),
            **self._totals(),
        }
        self.folder.write(END_FILE, canonical(end) + b"\n")


def _micros(seconds: float) -> Micros:
    return Micros(round(seconds * 1e6))
