"""Finds which training runs read a member, or those whom a pause covers.

A read made before the exclusion took effect stands; a read made after it is a violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentry.domain.controls import PauseImposed
from consentry.domain.decisions import Decision
from consentry.domain.errors import InvalidInput
from consentry.domain.values import REASON_RANK, MemberId, Micros, Reason
from consentry.trainer.deciding.member_classes import MemberClasses
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.certificates.reader import read_certificate
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct_reads, micros
from consentry.trainer.runs.read_files import merge_reads, open_read_files, reads_of_member
from consentry.trainer.runs.reexamine import (
    CANNOT_TELL,
    VIOLATED,
    proven_at,
    reexamine,
    row_of,
)
from consentry.trainer.runs.store import (
    CERTIFICATE_FILE,
    END_FILE,
    READS_FILE,
    RUN_FORMAT,
    START_FILE,
    RunFolder,
    RunStore,
    damaged,
)
from consentry.wire.freshness import FOREVER

_NUMBERS: Final = ("started_at", "lease_micros", "tail_micros", "tail_rows")
COMPLETED: Final = "COMPLETED"
BEFORE: Final = "before"
AFTER: Final = "after"
BOTH: Final = "before and after"
NOT_EXCLUDED: Final = "not excluded"


@dataclass(slots=True)
class RunReads:
    """The reads of one training run of the members in question.

    Times are in microseconds since 1970-01-01 UTC. `before` is True where reads were made before
    the exclusion bound the run: they stand, going forward. `violations` counts reads made after
    it. `unclear` has a sentence for everything that cannot be decided.
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
        """The word for when a training run read: before or after the exclusion, or both."""
        if self.violations and self.before:
            return BOTH
        if self.violations:
            return AFTER
        if self.before:
            return BEFORE
        return NOT_EXCLUDED


def runs_in(url: str) -> Iterator[RunFolder]:
    """Give every training run that a run store has registered. Raises Unavailable."""
    store = RunStore(url)
    for run_id in store.runs():
        yield store.folder(run_id)


def reach_of_member(
    folder: RunFolder, snapshot: Snapshot, member: MemberId, *, now: Micros
) -> RunReads | None:
    """Return the reads that a training run made of one member.

    None where the record of reads is whole and the member is not in it. Raises Unavailable.
    """
    start = _read_start(folder)
    report = _new_report(folder, start)
    with _open_reads(folder, report) as files:
        tables = [SCHEMA.empty_table()]
        for file in files:
            tables.append(reads_of_member(file, member))
        reads = distinct_reads(pa.concat_tables(tables))
    if reads.num_rows:
        _count_reads(report, reads)
        _reexamine_reads(report, snapshot, reads, start)
        _decide_now(report, snapshot, reads, member, now)
        report.before = bool(report.excluded_now) and _is_before_exclusion(report, start)
    if not report.rows and not report.unclear:
        return None
    return report


def reach_of_pause(
    folder: RunFolder, snapshot: Snapshot, name: str, *, now: Micros
) -> RunReads | None:
    """Return the reads that a training run made of those whom a pause covers.

    None where the record of reads is whole and nobody of them is in it. Raises Unavailable, and
    InvalidInput where there is no such pause.
    """
    pauses = pauses_named(snapshot, name)
    start = _read_start(folder)
    report = _new_report(folder, start)
    if not _covers_purpose(pauses, report.purpose):
        return None
    with _open_reads(folder, report) as files:
        for piece in merge_reads(files):
            covered = _covered_by_pauses(snapshot, piece, pauses, report.purpose, now)
            if covered.any():
                reads = piece.filter(pa.array(covered))
                _count_reads(report, reads)
                _reexamine_reads(report, snapshot, reads, start, only=Reason.PAUSED)
    if report.rows:
        beginnings = [max(pause.effective_at, pause.recorded_at) for pause in pauses]
        report.excluded_since = min(beginnings)
        if _is_in_force(snapshot, pauses, now):
            report.excluded_now = Reason.PAUSED.value
        report.before = _is_before_exclusion(report, start)
    if not report.rows and not report.unclear:
        return None
    return report


def pauses_named(snapshot: Snapshot, name: str) -> list[PauseImposed]:
    """Return every version of a pause to find read in runs. Raises InvalidInput if none."""
    pauses = [pause for pause in snapshot.controls.pauses if pause.pause == name]
    if not pauses:
        raise InvalidInput(
            f"There is no pause {name!r}.",
            code="input.pause",
            fix="`consentry pause list` names those there are",
        )
    return pauses


def _covers_purpose(pauses: list[PauseImposed], purpose: str) -> bool:
    for pause in pauses:
        purposes = pause.scope.purposes
        if purposes is None or purpose in purposes:
            return True
    return False


def _is_in_force(snapshot: Snapshot, pauses: list[PauseImposed], now: Micros) -> bool:
    controls = snapshot.controls
    return not all(controls.is_lifted(pause, at=now, known_at=FOREVER) for pause in pauses)


# ---- the run, and its record of reads


def _read_start(folder: RunFolder) -> dict[str, Any]:
    """Return the run.json of a run. Raises Unavailable."""
    start = folder.read_json(START_FILE)
    has_numbers = all(isinstance(start.get(name), int) for name in _NUMBERS)
    if start.get("format") != RUN_FORMAT or not has_numbers:
        raise damaged(folder.run_id, START_FILE)
    return start


def _new_report(folder: RunFolder, start: dict[str, Any]) -> RunReads:
    """Return a report about a run, without reads yet."""
    report = RunReads(
        run_id=folder.run_id,
        url=folder.url,
        dataset=str(start.get("dataset")),
        dataset_version=str(start.get("dataset_version")),
        purpose=str(start.get("purpose")),
        subscriber=str(start.get("subscriber")),
        state="UNFINISHED",
    )
    if folder.exists(END_FILE):
        report.state = str(folder.read_json(END_FILE).get("state"))
    elif folder.exists(CERTIFICATE_FILE):
        report.state = COMPLETED
    else:
        missing = "it may read on"
        if start["tail_rows"]:
            missing = (
                f"up to {start['tail_rows']} rows of its last {start['tail_micros'] / 1e6:g} s of "
                "reading may not be recorded"
            )
        report.unclear.append(f"it is still running or was killed: {missing}")
    return report


@contextmanager
def _open_reads(folder: RunFolder, report: RunReads) -> Iterator[list[pq.ParquetFile]]:
    """Open the reads that are there, and report where they cannot be all of them."""
    is_merged = folder.exists(READS_FILE)
    names = [READS_FILE]
    if not is_merged:
        names = folder.parts()
    with open_read_files(folder, names) as files:
        if report.state == COMPLETED:
            missing = _missing_reads(folder, files, is_merged=is_merged)
            if missing:
                report.unclear.append(missing)
        yield files


def _missing_reads(folder: RunFolder, files: list[pq.ParquetFile], *, is_merged: bool) -> str:
    """Return why the reads of a completed run are not those of its certificate; empty if they are.

    Only their number is compared.
    """
    if not is_merged:
        return f"it is {COMPLETED}, but {READS_FILE} is missing: what it read is not known"
    if not folder.exists(CERTIFICATE_FILE):
        return (
            f"it is {COMPLETED}, but {CERTIFICATE_FILE} is missing: whether its reads are whole "
            "is not known"
        )
    try:
        certificate = read_certificate(folder.read(CERTIFICATE_FILE))
    except InvalidInput as error:
        return f"its certificate does not show whether its reads are whole: {error.message}"
    stated = certificate.statement["reads"]["leaves"]
    rows = sum(file.metadata.num_rows for file in files)
    if rows != stated:
        return f"its certificate is of {stated} reads, {READS_FILE} holds {rows}"
    return ""


# ---- what was read, and whether that was allowed


def _count_reads(report: RunReads, reads: pa.Table) -> None:
    first = int(micros(reads["first_read_at"]).min())
    last = int(micros(reads["last_read_at"]).max())
    if report.first_read_at is not None:
        first = min(first, report.first_read_at)
    report.first_read_at = Micros(first)
    report.last_read_at = Micros(max(last, report.last_read_at or 0))
    report.rows += pc.sum(reads["rows"]).as_py()
    report.members += pc.count_distinct(reads["member_id"]).as_py()


def _reexamine_reads(
    report: RunReads,
    snapshot: Snapshot,
    reads: pa.Table,
    start: dict[str, Any],
    *,
    only: Reason | None = None,
) -> None:
    """Decide reads again as of their time; with `only` count the violations for that reason."""
    bound = Micros(start["lease_micros"])
    outcomes = reexamine(snapshot, reads, purpose=report.purpose, bound=bound)
    for reason, number in outcomes.counts(VIOLATED).items():
        if only is None or reason is only:
            report.violations[reason] += number
    unclear = sum(outcomes.counts(CANNOT_TELL).values())
    if unclear:
        report.unclear.append(f"{unclear} reads cannot be decided as of their time")
    known_at = proven_at(snapshot)
    if known_at is None or (report.last_read_at or 0) - bound > known_at:
        report.unclear.append(
            "it read later than what is known here: ask again with a newer bundle"
        )


def _decide_now(
    report: RunReads, snapshot: Snapshot, reads: pa.Table, member: MemberId, now: Micros
) -> None:
    """Report whether rows such as those that were read are excluded now, and since when.

    Of several reasons the first one in their order counts.
    """
    strictest: Decision | None = None
    for row in range(reads.num_rows):
        decision = snapshot.decide(
            member,
            row_of(reads, row),
            purpose=report.purpose,
            at=now,
            known_at=FOREVER,
            stale_detail="",
        )
        if decision.allowed:
            continue
        if strictest is None or REASON_RANK[decision.reason] < REASON_RANK[strictest.reason]:
            strictest = decision
    if strictest is not None:
        report.excluded_now = strictest.reason.value
        report.excluded_since = _time_of_fact(strictest.because[0].fact)


def _is_before_exclusion(report: RunReads, start: dict[str, Any]) -> bool:
    """Return whether something was read before the exclusion bound the run."""
    if report.first_read_at is None:
        return False
    lease_micros: int = start["lease_micros"]
    if report.excluded_since is None:
        return True
    return report.first_read_at < report.excluded_since + lease_micros


def _time_of_fact(fact: object) -> Micros | None:
    """Return when a fact both held and was recorded; None where it has no dates."""
    effective: Micros | None = getattr(fact, "effective_at", None)
    recorded: Micros | None = getattr(fact, "recorded_at", None)
    if effective is None or recorded is None:
        return None
    return max(effective, recorded)


# ---- the rows that a pause covers


def _covered_by_pauses(
    snapshot: Snapshot, reads: pa.Table, pauses: list[PauseImposed], purpose: str, now: Micros
) -> npt.NDArray[np.bool_]:
    """Return True for each read that one of these pauses covers.

    Both the row's own jurisdiction and the member's last known one count. Each distinct combination
    of member class, jurisdiction and category is asked about once.
    """
    if not reads.num_rows:
        return np.zeros(0, dtype=np.bool_)
    member_classes = MemberClasses(purpose, snapshot.boundaries.opt_ins_voided_at)
    keys = [member.encode() for member in reads["member_id"].to_pylist()]
    classes = snapshot.classes(keys, member_classes, at=now, known_at=FOREVER)
    homes = [state.jurisdiction for state in member_classes.states]
    jurisdictions = _dictionary_of(reads["jurisdiction"])
    categories = _dictionary_of(reads["category"])
    codes = np.stack([classes, jurisdictions.indices.to_numpy(), categories.indices.to_numpy()])
    combinations, combination_of_row = np.unique(codes, axis=1, return_inverse=True)
    jurisdiction_names = jurisdictions.dictionary.to_pylist()
    category_names = categories.dictionary.to_pylist()
    answers = []
    for member_class, jurisdiction, category in combinations.T.tolist():
        places = {homes[member_class], jurisdiction_names[jurisdiction]}
        use = category_names[category]
        answers.append(_is_covered(snapshot, pauses, places, purpose, use, now))
    return np.array(answers, dtype=np.bool_)[combination_of_row.reshape(-1)]


def _dictionary_of(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return column.combine_chunks().dictionary_encode(null_encoding="encode")


def _is_covered(
    snapshot: Snapshot,
    pauses: list[PauseImposed],
    jurisdictions: set[str | None],
    purpose: str,
    category: str | None,
    now: Micros,
) -> bool:
    """Return whether one of these pauses covers this use of a row from one of the jurisdictions."""
    scopes = [pause.scope for pause in pauses if pause.scope.covers_use(purpose, category)]
    groups: set[str] = set()
    if scopes:
        for jurisdiction in jurisdictions:
            if jurisdiction:
                groups.update(snapshot.controls.jurisdictions.holders(jurisdiction, at=now))
    return any(not groups.isdisjoint(scope.jurisdictions) for scope in scopes)
