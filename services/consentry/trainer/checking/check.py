"""Says of data files whether they hold rows that may not be used: clean, violations, or cannot
tell.
"""

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
    """What a check came to."""

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
    """What became of one file: rows by reason, and why it could not be read to its end, if so."""

    name: str
    counts: Counter[Reason] = field(default_factory=Counter)
    problem: ConsentryError | None = None

    @property
    def rows(self) -> int:
        """How many rows were judged."""
        return self.counts.total()

    @property
    def violations(self) -> Counter[Reason]:
        """The rows that may not be used, by reason."""
        return Counter(
            {
                reason: n
                for reason, n in self.counts.items()
                if not reason.allows and reason is not Reason.STALE
            }
        )

    @property
    def outcome(self) -> CheckOutcome:
        """A violation that was found stands, whatever else could not be told."""
        if self.violations:
            return CheckOutcome.VIOLATIONS
        return (
            CheckOutcome.CANNOT_TELL
            if self.problem or self.counts[Reason.STALE]
            else CheckOutcome.CLEAN
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """A member who is excluded, and the first row of a file that holds them, counted from 0."""

    member: str
    reason: Reason
    file: str
    row: int


@dataclass(slots=True, kw_only=True)
class CheckReport:
    """What a check of several files came to. `snapshot` names what the answers rest on."""

    purpose: str
    snapshot: str = ""
    stale_detail: str = ""
    files: list[FileReport] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    @property
    def outcome(self) -> CheckOutcome:
        """No file at all is not clean: nothing was looked at."""
        found = {file.outcome for file in self.files}
        if CheckOutcome.VIOLATIONS in found:
            return CheckOutcome.VIOLATIONS
        return CheckOutcome.CLEAN if found == {CheckOutcome.CLEAN} else CheckOutcome.CANNOT_TELL

    @property
    def counts(self) -> Counter[Reason]:
        """Rows by reason, of all files."""
        return sum((file.counts for file in self.files), Counter[Reason]())

    def as_data(self) -> dict[str, Any]:
        """The report as plain values for JSON; member ids only where they were asked for."""
        told: dict[str, Any] = {
            "outcome": self.outcome.value,
            "purpose": self.purpose,
            "snapshot": self.snapshot,
            "rows": self.counts.total(),
            "counts": _plain(self.counts),
            "violations": sum(file.violations.total() for file in self.files),
            "files": [
                {
                    "file": file.name,
                    "outcome": file.outcome.value,
                    "rows": file.rows,
                    "counts": _plain(file.counts),
                    "problem": None if file.problem is None else _problem(file.problem),
                }
                for file in self.files
            ],
        }
        if self.stale_detail:
            told["stale"] = self.stale_detail
        if self.shown:
            told["members"] = [
                {"member": one.member, "reason": one.reason.value, "file": one.file, "row": one.row}
                for one in self.shown
            ]
        return told


def _plain(counts: Counter[Reason]) -> dict[str, int]:
    return {reason.value: counts[reason] for reason in Reason if counts[reason]}


def _problem(error: ConsentryError) -> dict[str, str]:
    return {"detail": error.message, "code": error.code, "fix": error.fix}


class Check:
    """One check: files are added one by one, each read batch by batch, so that none has to fit into
    memory.

    `show_max` members are named at most; after `seconds_max` no more is read. `at_least` is a
    consistency token.
    """

    def __init__(
        self,
        decider: Decider,
        *,
        purpose: str,
        at_least: str | None = None,
        show_max: int = 0,
        seconds_max: float | None = None,
        told: Callable[[FileReport], None] = lambda _: None,
    ) -> None:
        self.report: Final = CheckReport(purpose=purpose)
        self._decider = decider
        self._at_least = at_least
        self._show_max = show_max
        self._seconds_max = seconds_max
        self._until = None if seconds_max is None else monotonic() + seconds_max
        self._told = told
        self._named: set[str] = set()

    def files(
        self, files: Iterable[DataFile], asked: ColumnSpec, *, name: Callable[[Path], str] = str
    ) -> CheckReport:
        """Check all of them; a file that cannot be read is told in the report, and the others are
        read all the same.
        """
        for file in files:
            if not self.add(name(file.path), read_batches(file, asked)):
                break
        return self.report

    def add(self, name: str, batches: Batches) -> bool:
        """Check one file or body; False: there is no use in going on."""
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
            self._told(report)
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
            self.report.stale_detail = (
                self._decider.stale_detail or "what the token asks for is not here yet"
            )
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
            if member not in self._named and reason is not Reason.STALE:
                self._named.add(member)
                self.report.shown.append(Shown(member, reason, report.name, before + row))
                if len(self.report.shown) >= self._show_max:
                    return
