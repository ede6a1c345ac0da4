"""Who was read where: each run's reads of a member, or of whom a pause covers, before and after
they were excluded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.controls import PauseImposed
from consentry.domain.errors import InvalidInput
from consentry.domain.values import REASON_RANK, MemberId, Micros, Reason
from consentry.trainer.deciding.member_classes import MemberClasses
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates import read_certificate
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct, micros
from consentry.trainer.runs.read_log import merged, open_reads, reads_of
from consentry.trainer.runs.reexamine import CANNOT_TELL, VIOLATED, examine, proven_at, row_of
from consentry.trainer.runs.run import RUN_FORMAT
from consentry.trainer.runs.store import (
    CERTIFICATE_FILE,
    END_FILE,
    READS_FILE,
    START_FILE,
    RunFolder,
    RunStore,
    damaged,
)
from consentry.wire.freshness import FOREVER

_NUMBERS: Final = ("started_at", "lease_micros", "tail_micros", "tail_rows")
COMPLETED: Final = "COMPLETED"
BEFORE, AFTER, BOTH, NOT_EXCLUDED = "before", "after", "before and after", "not excluded"


@dataclass(slots=True)
class RunReads:
    """What one run read of those asked about. Times in microseconds since 1970-01-01 UTC.

    `before` is True where reads were made before the exclusion bound the run: they stand, going
    forward; `violations` counts reads made after. `unclear` says what cannot be told.
    """

    run_id: str
    url: str
    dataset: str
    dataset_version: str
    purpose: str
    subscriber: str
    state: str
    members: int = 0
    rows: int = 0
    first_read_at: Micros | None = None
    last_read_at: Micros | None = None
    excluded_now: str = ""
    excluded_since: Micros | None = None
    before: bool = False
    violations: Counter[Reason] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)

    @property
    def when(self) -> str:
        """In a word, whether reads were made before or after the exclusion."""
        if self.violations:
            return BOTH if self.before else AFTER
        return BEFORE if self.before else NOT_EXCLUDED


def runs_in(url: str) -> Iterator[RunFolder]:
    """Every run that a store has registered. Raises Unavailable."""
    store = RunStore(url)
    for run_id in store.runs():
        yield store.folder(run_id)


def reach_of_member(
    folder: RunFolder, snapshot: Snapshot, member: MemberId, *, now: Micros
) -> RunReads | None:
    """What a run read of one member; None where it is whole and never did. Raises Unavailable."""
    start, found = _started(folder)
    with _reads(folder, found) as files:
        reads = distinct(
            pa.concat_tables([SCHEMA.empty_table(), *(reads_of(file, member) for file in files)])
        )
    if reads.num_rows:
        _count(found, reads)
        _decider(found, snapshot, reads, start)
        _say_now(found, snapshot, reads, member, now)
        found.before = bool(found.excluded_now) and _is_before(found, start)
    return found if found.rows or found.unclear else None


def reach_of_pause(
    folder: RunFolder, snapshot: Snapshot, name: str, *, now: Micros
) -> RunReads | None:
    """What a run read of those whom a pause covers; None where it is whole and did not.

    Raises Unavailable.
    """
    pauses = pauses_named(snapshot, name)
    start, found = _started(folder)
    if not any(
        pause.scope.purposes is None or found.purpose in pause.scope.purposes for pause in pauses
    ):
        return None
    with _reads(folder, found) as files:
        for piece in merged(files):
            covered = _covered(snapshot, piece, pauses, found.purpose, now)
            if covered.any():
                reads = piece.filter(pa.array(covered))
                _count(found, reads)
                _decider(found, snapshot, reads, start, only=Reason.PAUSED)
    if found.rows:
        found.excluded_since = min(max(pause.effective_at, pause.recorded_at) for pause in pauses)
        in_force = (
            not snapshot.controls.is_lifted(pause, at=now, known_at=FOREVER) for pause in pauses
        )
        found.excluded_now = Reason.PAUSED.value if any(in_force) else ""
        found.before = _is_before(found, start)
    return found if found.rows or found.unclear else None


def pauses_named(snapshot: Snapshot, name: str) -> list[PauseImposed]:
    """Every version of a pause. Raises InvalidInput where there is none."""
    found = [pause for pause in snapshot.controls.pauses if pause.pause == name]
    if not found:
        raise InvalidInput(
            f"There is no pause {name!r}.",
            code="input.pause",
            fix="`consentry pause list` names those there are",
        )
    return found


def _started(folder: RunFolder) -> tuple[dict[str, Any], RunReads]:
    """What a run said at its start, and a reach without reads."""
    start = folder.read_json(START_FILE)
    if start.get("format") != RUN_FORMAT or not all(
        isinstance(start.get(name), int) for name in _NUMBERS
    ):
        raise damaged(folder.run_id, START_FILE)
    found = RunReads(
        run_id=folder.run_id,
        url=folder.url,
        dataset=str(start.get("dataset")),
        dataset_version=str(start.get("dataset_version")),
        purpose=str(start.get("purpose")),
        subscriber=str(start.get("subscriber")),
        state="UNFINISHED",
    )
    if folder.exists(END_FILE):
        found.state = str(folder.read_json(END_FILE).get("state"))
    elif folder.exists(CERTIFICATE_FILE):
        found.state = COMPLETED
    else:
        seconds, rows = start["tail_micros"] / 1e6, start["tail_rows"]
        tail = (
            f"up to {rows} rows of its last {seconds:g} s of reading may not be recorded"
            if rows
            else ""
        )
        found.unclear.append(f"it is still running or was killed: {tail or 'it may read on'}")
    return start, found


@contextmanager
def _reads(folder: RunFolder, found: RunReads) -> Iterator[list[pq.ParquetFile]]:
    """What is there of the reads; in `found.unclear` what cannot be all of them."""
    is_merged = folder.exists(READS_FILE)
    names = [READS_FILE] if is_merged else folder.parts()
    with ExitStack() as stack:
        files = [open_reads(stack.enter_context(folder.open(name)), name) for name in names]
        if found.state == COMPLETED:
            found.unclear += _missing(folder, files, is_merged=is_merged)
        yield files


def _missing(folder: RunFolder, files: list[pq.ParquetFile], *, is_merged: bool) -> list[str]:
    """Why the reads of a completed run are not those of its certificate, as far as their number
    shows it.
    """
    if not is_merged:
        return [f"it is {COMPLETED}, but {READS_FILE} is missing: what it read is not known"]
    if not folder.exists(CERTIFICATE_FILE):
        return [
            f"it is {COMPLETED}, but {CERTIFICATE_FILE} is missing: whether its reads are whole "
            "is not known"
        ]
    try:
        told = read_certificate(folder.read(CERTIFICATE_FILE)).statement["reads"]["leaves"]
    except InvalidInput as error:
        return [f"its certificate does not tell whether its reads are whole: {error.message}"]
    there = sum(file.metadata.num_rows for file in files)
    return (
        [] if there == told else [f"its certificate is of {told} reads, {READS_FILE} holds {there}"]
    )


def _count(found: RunReads, reads: pa.Table) -> None:
    first, last = (
        int(micros(reads["first_read_at"]).min()),
        int(micros(reads["last_read_at"]).max()),
    )
    found.first_read_at = Micros(
        min(first, first if found.first_read_at is None else found.first_read_at)
    )
    found.last_read_at = Micros(max(last, found.last_read_at or 0))
    found.rows += pc.sum(reads["rows"]).as_py()
    found.members += pc.count_distinct(reads["member_id"]).as_py()


def _decider(
    found: RunReads,
    snapshot: Snapshot,
    reads: pa.Table,
    start: dict[str, Any],
    *,
    only: Reason | None = None,
) -> None:
    examined = examine(snapshot, reads, purpose=found.purpose, bound=Micros(start["lease_micros"]))
    violations = Counter(examined.counts(VIOLATED))
    found.violations.update(
        {reason: number for reason, number in violations.items() if only in (None, reason)}
    )
    unclear = Counter(examined.counts(CANNOT_TELL)).total()
    if unclear:
        found.unclear.append(f"{unclear} reads cannot be decided as of their time")
    known_at = proven_at(snapshot)
    if known_at is None or (found.last_read_at or 0) - start["lease_micros"] > known_at:
        found.unclear.append("it read later than what is known here: ask again with a newer bundle")


def _say_now(
    found: RunReads, snapshot: Snapshot, reads: pa.Table, member: MemberId, now: Micros
) -> None:
    """Whether rows such as were read are excluded now, and since when; of several reasons the first
    in their order.
    """
    decisions = [
        snapshot.decide(
            member,
            row_of(reads, row),
            purpose=found.purpose,
            at=now,
            known_at=FOREVER,
            stale_detail="",
        )
        for row in range(reads.num_rows)
    ]
    excluding = [decision for decision in decisions if not decision.allowed]
    if excluding:
        first = min(excluding, key=lambda decision: REASON_RANK[decision.reason])
        found.excluded_now = first.reason.value
        found.excluded_since = _since(first.because[0].fact)


def _is_before(found: RunReads, start: dict[str, Any]) -> bool:
    """Whether something was read before the exclusion bound the run."""
    if found.first_read_at is None:
        return False
    return (
        found.excluded_since is None
        or found.first_read_at < found.excluded_since + start["lease_micros"]
    )


def _since(fact: Any) -> Micros | None:
    """When a fact both held and was recorded; None where it has no dates."""
    effective, recorded = getattr(fact, "effective_at", None), getattr(fact, "recorded_at", None)
    return None if effective is None or recorded is None else max(effective, recorded)


def _covered(
    snapshot: Snapshot, reads: pa.Table, pauses: list[PauseImposed], purpose: str, now: Micros
) -> npt.NDArray[np.bool_]:
    """Which reads come under a pause, by where the row is from or where the member was last known
    to live.
    """
    member_classes = MemberClasses(purpose, snapshot.boundaries.voiding)
    keys = [member.encode() for member in reads["member_id"].to_pylist()]
    classes = snapshot.classes(keys, member_classes, at=now, known_at=FOREVER)
    homes = [own.jurisdiction for own in member_classes.standings]
    rows = reads["jurisdiction"].combine_chunks().dictionary_encode(null_encoding="encode")
    categories = reads["category"].combine_chunks().dictionary_encode(null_encoding="encode")
    places, uses = rows.dictionary.to_pylist(), categories.dictionary.to_pylist()
    codes = (
        np.stack([classes, rows.indices.to_numpy(), categories.indices.to_numpy()])
        if len(keys)
        else classes
    )
    distinct, of_row = np.unique(codes, axis=1, return_inverse=True)
    answers = [
        any(
            _covers(snapshot, pause, {homes[own], places[place]}, purpose, uses[use], now)
            for pause in pauses
        )
        for own, place, use in distinct.T.tolist()
    ]
    return np.array(answers, dtype=np.bool_)[of_row.reshape(-1)]


def _covers(
    snapshot: Snapshot,
    pause: PauseImposed,
    places: set[str | None],
    purpose: str,
    category: str | None,
    now: Micros,
) -> bool:
    if not pause.scope.covers_use(purpose, category):
        return False
    jurisdictions = snapshot.controls.jurisdictions
    holders = {
        holder for place in places if place for holder in jurisdictions.holders(place, at=now)
    }
    return bool(holders & set(pause.scope.jurisdictions))
