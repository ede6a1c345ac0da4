"""Check data files for rows that may not be used: clean, violations, or cannot tell."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
import pyarrow as pa

from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.values import Reason
from consentry.trainer.checking.data_files import DataFile, read_batches
from consentry.trainer.deciding.columns import Columns, ColumnSpec
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.trainer.deciding.decider import Decider

_ID_LENGTH_MAX: Final = 80

Batches = Iterator[tuple[pa.Table, Columns]]


class CheckOutcome(enum.StrEnum):
    """The outcome of a check of data files: clean, violations, or cannot tell."""

    CLEAN = "clean"
    VIOLATIONS = "violations"
    CANNOT_TELL = "cannot_tell"


EXIT_STATUS: Final = {
    CheckOutcome.CLEAN: 0,
    CheckOutcome.VIOLATIONS: 1,
    CheckOutcome.CANNOT_TELL: 2,
}


@dataclass(slots=True)
class FileReport:
    """A checked data file's rows by reason, and why its end could not be read, if so."""

    name: str
    counts: Counter[Reason] = field(default_factory=Counter)
    problem: ConsentryError | None = None

    @property
    def rows(self) -> int:
        """The number of rows of the checked file that were decided."""
        return self.counts.total()

    @property
    def violations(self) -> Counter[Reason]:
        """The rows of the checked file that may not be used, by reason."""
        violations: Counter[Reason] = Counter()
        for reason, rows in self.counts.items():
            if not reason.allows and reason is not Reason.STALE:
                violations[reason] = rows
        return violations

    @property
    def outcome(self) -> CheckOutcome:
        """The check's outcome for this file.

        A violation stands, whatever else could not be read.
        """
        if self.violations:
            return CheckOutcome.VIOLATIONS
        if self.problem or self.counts[Reason.STALE]:
            return CheckOutcome.CANNOT_TELL
        return CheckOutcome.CLEAN


@dataclass(frozen=True, slots=True)
class ExcludedMember:
    """An excluded member in a checked file, and the first row with them, counted from 0."""

    member: str
    reason: Reason
    file: str
    row: int


@dataclass(slots=True, kw_only=True)
class CheckReport:
    """The results of a check of several data files; `snapshot` names what they rest on."""

    purpose: str
    snapshot: str = ""
    stale_detail: str = ""
    files: list[FileReport] = field(default_factory=list)
    shown: list[ExcludedMember] = field(default_factory=list)

    @property
    def outcome(self) -> CheckOutcome:
        """The check's outcome for all files. No file is not clean: nothing was examined."""
        outcomes = {file.outcome for file in self.files}
        if CheckOutcome.VIOLATIONS in outcomes:
            return CheckOutcome.VIOLATIONS
        if outcomes == {CheckOutcome.CLEAN}:
            return CheckOutcome.CLEAN
        return CheckOutcome.CANNOT_TELL

    @property
    def counts(self) -> Counter[Reason]:
        """The rows of all checked files by reason."""
        return sum((file.counts for file in self.files), Counter[Reason]())

    def as_data(self) -> dict[str, Any]:
        """Return the check's report as plain values for JSON.

        Member ids are in it only where `shown` has any.
        """
        violations = sum(file.violations.total() for file in self.files)
        data: dict[str, Any] = {
            "outcome": self.outcome.value,
            "purpose": self.purpose,
            "snapshot": self.snapshot,
            "rows": self.counts.total(),
            "counts": _plain(self.counts),
            "violations": violations,
            "files": list(map(_file_data, self.files)),
        }
        if self.stale_detail:
            data["stale"] = self.stale_detail
        if self.shown:
            data["members"] = list(map(_shown_data, self.shown))
        return data


def _file_data(file: FileReport) -> dict[str, Any]:
    problem: dict[str, str] | None = None
    if file.problem is not None:
        problem = _problem(file.problem)
    return {
        "file": file.name,
        "outcome": file.outcome.value,
        "rows": file.rows,
        "counts": _plain(file.counts),
        "problem": problem,
    }


def _shown_data(shown: ExcludedMember) -> dict[str, Any]:
    return {
        "member": shown.member,
        "reason": shown.reason.value,
        "file": shown.file,
        "row": shown.row,
    }


def _plain(counts: Counter[Reason]) -> dict[str, int]:
    return {reason.value: counts[reason] for reason in Reason if counts[reason]}


def _problem(error: ConsentryError) -> dict[str, str]:
    return {"detail": error.message, "code": error.code, "fix": error.fix}


class Check:
    """One check of data files: they are added one by one, each read batch by batch.

    So no file has to fit into memory. At most `show_max` members are named; after `seconds_max`
    nothing more is read. `at_least` is a consistency token. `on_file` is called with the report of
    each file.
    """

    def __init__(
        self,
        decider: Decider,
        *,
        purpose: str,
        at_least: str | None = None,
        show_max: int = 0,
        seconds_max: float | None = None,
        on_file: Callable[[FileReport], None] = lambda _: None,
    ) -> None:
        self.report: Final = CheckReport(purpose=purpose)
        self._decider = decider
        self._at_least = at_least
        self._show_max = show_max
        self._seconds_max = seconds_max
        self._until: float | None = None
        if seconds_max is not None:
            self._until = monotonic() + seconds_max
        self._on_file = on_file
        self._shown_members: set[str] = set()

    def files(
        self, files: Iterable[DataFile], spec: ColumnSpec, *, name: Callable[[Path], str] = str
    ) -> CheckReport:
        """Check all data files; one that cannot be read is reported, and the others are read."""
        for file in files:
            if not self.add(name(file.path), read_batches(file, spec)):
                break
        return self.report

    def add(self, name: str, batches: Batches) -> bool:
        """Check one data file or body; return False where it is of no use to go on."""
        report = FileReport(name)
        self.report.files.append(report)
        try:
            for table, columns in batches:
                self._check_time()
                decisions = self._decider.decide_table(
                    table, purpose=self.report.purpose, columns=columns, at_least=self._at_least
                )
                if not self._count(report, table, columns, decisions):
                    return False
        except ConsentryError as error:
            report.problem = error
        finally:
            self.report.snapshot = self._decider.snapshot_id
            self._on_file(report)
        return report.problem is None or not isinstance(report.problem, Unavailable)

    def _check_time(self) -> None:
        if self._until is not None and monotonic() > self._until:
            raise Unavailable(
                f"The check was not done within {self._seconds_max:g} s.",
                code="check.time",
                fix="check fewer files at a time, or run `consentry check` beside the data",
            )

    def _count(
        self, report: FileReport, table: pa.Table, columns: Columns, decisions: Decisions
    ) -> bool:
        counts = Counter(decisions.counts())
        self._show(report, table, columns, decisions)
        report.counts += counts
        if counts[Reason.STALE]:
            detail = self._decider.stale_detail or "what the token asks for is not here yet"
            self.report.stale_detail = detail
            return False
        return True

    def _show(
        self, report: FileReport, table: pa.Table, columns: Columns, decisions: Decisions
    ) -> None:
        if len(self.report.shown) >= self._show_max:
            return
        before = report.rows
        for row in np.flatnonzero(~decisions.mask).tolist():
            member = str(table[columns.member][row].as_py())[:_ID_LENGTH_MAX]
            reason = REASONS[decisions.reasons[row]]
            if member not in self._shown_members and reason is not Reason.STALE:
                self._shown_members.add(member)
                shown = ExcludedMember(member, reason, report.name, before + row)
                self.report.shown.append(shown)
                if len(self.report.shown) >= self._show_max:
                    return
