"""The check of `consentry demo`: the pure rules over all that was sent, against the system."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from consentry.cli.demo.story import PURPOSE, ChangeEvent
from consentry.domain.controls import Control, Controls, PauseImposed
from consentry.domain.decisions import Row, decide
from consentry.domain.records import Record, fold
from consentry.domain.values import MEMBER_ID_PATTERN, Micros, Reason, micros
from consentry.table.protocol import ConsentTable
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.records import DIGEST_BITS, record_digest, write_record

NOTES_MAX = 5


@dataclass(slots=True)
class Findings:
    """The differences that the demo's check found between the system and the pure rules.

    Everything but `rows`, the rows compared, has to be zero.
    """

    rows: int = 0
    wrong_allowed: int = 0
    wrong_excluded: int = 0
    wrong_reason: int = 0
    rows_left: int = 0
    rows_missing: int = 0
    wrong_records: int = 0
    unequal_digests: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Return True if the demo's check found no difference."""
        wrong = (
            self.wrong_allowed,
            self.wrong_excluded,
            self.wrong_reason,
            self.rows_left,
            self.rows_missing,
        )
        return not any((*wrong, self.wrong_records, self.unequal_digests))


class Oracle:
    """The pure rules' view of the demo: folds everything that was sent, in the log's order.

    It uses the pure functions alone.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.controls = Controls(iso_jurisdictions())
        self.purged: dict[str, frozenset[str]] = {}
        """Members whose rows must be gone, and for a pause also the jurisdictions of rows."""
        self._erased: set[str] = set()
        self._purged_members: set[str] = set()
        self._purged_jurisdictions: set[str] = set()

    def send(self, events: Iterable[ChangeEvent]) -> None:
        """Fold events of the demo's members; each member's own are in order."""
        for event in events:
            self.records[event.member] = fold(self.records.get(event.member), event)
            if self.records[event.member].erasure is not None:
                self._erased.add(event.member)

    def control(self, control: Control) -> None:
        """Apply a control of the demo; a pause of past training purges members in its scope.

        Those are the members who live there.
        """
        self.controls = self.controls.after(control)
        if isinstance(control, PauseImposed) and control.requires_purge:
            scope = control.scope.jurisdictions
            self._purged_jurisdictions.update(scope)
            for member, record in self.records.items():
                places = [
                    fact.name for fact in record.facts if fact.kind.name.startswith("RELOCATED")
                ]
                if places and places[-1] in scope:
                    self._purged_members.add(member)

    def must_go(self, member: object, jurisdiction: object) -> bool:
        """Return True if the rules say that a row of the demo had to be purged."""
        return (
            member in self._erased
            or member in self._purged_members
            or jurisdiction in self._purged_jurisdictions
        )

    def version(self, member: str) -> int:
        """The version that the demo member's record must have come to by the rules."""
        return self.records[member].version


def check_dataset(
    oracle: Oracle,
    before: pa.Table,
    directory: Path,
    manifest: Path,
    now: Micros,
    findings: Findings,
) -> None:
    """Compare each row of a demo trainer's data set, and its answer, with the rules.

    The answer is the trainer's.
    """
    stored = {path.name: pq.read_table(path) for path in sorted(directory.glob("*.parquet"))}
    rows_kept = sum(table.num_rows for table in stored.values())
    members = before["member_id"].to_pylist()
    jurisdictions = [None] * before.num_rows
    if "jurisdiction" in before.column_names:
        jurisdictions = before["jurisdiction"].to_pylist()
    rows_to_keep = 0
    for member, jurisdiction in zip(members, jurisdictions, strict=True):
        rows_to_keep += not oracle.must_go(member, jurisdiction)
    findings.rows_missing += max(0, rows_to_keep - rows_kept)
    answers = {
        (row["file"], row["row"]): row["reason"] for row in pq.read_table(manifest).to_pylist()
    }
    for name, table in stored.items():
        for number, row in enumerate(table.to_pylist()):
            _check_row(oracle, row, answers.get((name, number)), now, findings)


def _check_row(
    oracle: Oracle, row: dict[str, object], answer: str | None, now: Micros, findings: Findings
) -> None:
    findings.rows += 1
    member = row["member_id"]
    findings.rows_left += oracle.must_go(member, row.get("jurisdiction"))
    expected, allowed = _expected(oracle, row, now)
    was_allowed = answer is not None and Reason(answer).allows
    findings.wrong_allowed += was_allowed and not allowed
    findings.wrong_excluded += allowed and not was_allowed
    if answer != expected:
        findings.wrong_reason += 1
        if len(findings.notes) < NOTES_MAX:
            findings.notes.append(
                f"a row of {member} was answered {answer}, the rules say {expected}"
            )


def _expected(oracle: Oracle, row: dict[str, object], now: Micros) -> tuple[str, bool]:
    member = row["member_id"]
    if not isinstance(member, str) or MEMBER_ID_PATTERN.fullmatch(member) is None:
        return Reason.QUARANTINED, False
    collected = row.get("collected_at")
    asked_row = Row(
        jurisdiction=_text(row.get("jurisdiction")),
        category=_text(row.get("category")),
        collected=None if collected is None else micros(_midnight(collected)),
    )
    decision = decide(
        oracle.records.get(member),
        asked_row,
        oracle.controls,
        purpose=PURPOSE,
        at=now,
        known_at=now,
    )
    return decision.reason, decision.allowed


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _midnight(day: object) -> datetime:
    assert isinstance(day, date)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def check_table(
    oracle: Oracle,
    table: ConsentTable,
    partitions: int,
    record_frame: bytes,
    followers: Iterable[str],
    findings: Findings,
) -> None:
    """Compare the consent table with the demo's rules, and every follower with the table.

    The table is compared record by record.
    """
    records: dict[str, bytes] = {}
    digests: dict[int, str] = {}
    for partition in range(partitions):
        total = 0
        for member, raw in table.scan(partition):
            records[member.decode()] = raw
            total += record_digest(member, raw)
        digests[partition] = f"{total % (1 << DIGEST_BITS):032x}"
    for name, record in oracle.records.items():
        if records.pop(name, None) != write_record(record, record_frame):
            findings.wrong_records += 1
            if len(findings.notes) < NOTES_MAX:
                findings.notes.append(f"the table's record of {name} is not what the rules fold to")
    findings.wrong_records += len(records)
    for address in followers:
        reported = _read_digests(address)
        for partition, digest in digests.items():
            findings.unequal_digests += reported.get(partition) != digest


def _read_digests(address: str) -> dict[int, str]:
    """Ask a follower for its digests, by partition."""
    with urllib.request.urlopen(f"http://{address}/digest", timeout=30) as answer:
        digests = json.load(answer)["digests"]
    return {int(partition): str(digest) for partition, digest in digests.items()}
