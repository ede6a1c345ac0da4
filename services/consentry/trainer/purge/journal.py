"""The journal of a purge, written before anything changes: rows removed, files under way.

One line of JSON each, synced before the file that it is about is replaced. Orders stand in it by a
digest, as their names hold member ids. Lines about one file: `stage` once its successor is on disk,
`done` once it is replaced and counted, `drop` if it never was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.trainer.purge.files import Fingerprint
from consentry.trainer.purge.replace_files import is_content, put_back, sync_file, sync_folders

FOLDER: Final = ".consentry-purge"
_LINES: Final = "journal.jsonl"
_JOURNAL_FILES: Final = (_LINES, "lock")
_COMPACT_LINES_MIN: Final = 1000


def order_key(order_id: str) -> str:
    """Return the digest by which a purge's journal names an order, and no member."""
    return hashlib.blake2b(order_id.encode(), digest_size=16).hexdigest()


def leftover_files(directory: Path) -> list[Path]:
    """Return the staged files beside a purge's journal: of one under way, or one killed."""
    folder = directory / FOLDER
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name not in _JOURNAL_FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile:
    """A purged file's successor, complete on disk as `staged` in the journal's folder.

    `rows` are the rows that it leaves out, by order key.
    """

    file: str
    staged: str
    old: Fingerprint
    new: Fingerprint
    rows: Mapping[str, int]


@dataclass(slots=True)
class OrderTotal:
    """The rows that purges removed for an order, and the data set's version before them."""

    rows: int = 0
    version_before: str = ""


@dataclass(slots=True)
class _State:
    totals: dict[str, OrderTotal] = field(default_factory=dict)
    under_way: dict[str, tuple[StagedFile, str]] = field(default_factory=dict)
    lines: int = 0

    def apply(self, line: Mapping[str, Any]) -> None:
        """Apply one line of the journal."""
        self.lines += 1
        if line["do"] == "stage":
            self.under_way[line["staged"]] = _read_staged_file(line), line["before"]
            return
        if line["do"] == "total":
            self.totals[line["order"]] = OrderTotal(line["rows"], line["before"])
            return
        staged, before = self.under_way.pop(line["staged"])
        if line["do"] == "done":
            for order, rows in staged.rows.items():
                total = self.totals.setdefault(order, OrderTotal(0, before))
                total.rows += rows


def _read_staged_file(line: Mapping[str, Any]) -> StagedFile:
    return StagedFile(
        file=line["file"],
        staged=line["staged"],
        old=Fingerprint(*line["old"]),
        new=Fingerprint(*line["new"]),
        rows=line["rows"],
    )


class Journal:
    """The journal of one directory that is purged, held by one purge at a time."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / FOLDER
        self._path = self.folder / _LINES
        self._state = _State()
        self._lock = -1
        self._number = 0

    def __enter__(self) -> Journal:
        """Lock the journal, and settle the files that a killed purge left.

        Raises Unavailable while another purge holds it.
        """
        self._take_lock()
        try:
            self._state = _read(self._path)
            self.settle()
            if self._state.lines > _COMPACT_LINES_MIN:
                self._compact()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _take_lock(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise Unavailable(
                f"Another purge of {self.folder.parent.name!r} is under way.",
                code="purge.under_way",
                fix="wait for it to end",
            ) from error

    def __exit__(self, *_: object) -> None:
        try:
            if not self._state.under_way:
                self._remove_leftovers()
        finally:
            os.close(self._lock)

    def totals(self) -> Mapping[str, OrderTotal]:
        """Return the rows that purges have removed so far, by order key."""
        return self._state.totals

    def new_name(self) -> str:
        """Return a new name for a staged file of a purge; no reader takes it for data."""
        self._number += 1
        return f"{self._number:08}.new"

    def stage(self, files: Sequence[StagedFile], version_before: str) -> None:
        """Write down which files a purge is about to replace; on disk at the return."""
        lines = [
            {
                "do": "stage",
                "file": file.file,
                "staged": file.staged,
                "old": file.old,
                "new": file.new,
                "rows": dict(file.rows),
                "before": version_before,
            }
            for file in files
        ]
        self._write(lines)

    def settle(self) -> None:
        """Count the purged files that were replaced, and destroy what is left over.

        A successor is under its staged name until it replaces its file, and never after.
        """
        done: list[str] = []
        dropped: list[str] = []
        for name, (file, _before) in self._state.under_way.items():
            path, staged = self.folder.parent / file.file, self.folder / name
            is_ours = is_content(staged, file.new) or is_content(staged, file.old)
            if staged.exists() and not is_ours:
                # The purge was killed after it took out the file that somebody else had put there,
                # and before it put that back.
                put_back(path, staged, file.new)
            if is_content(staged, file.new):
                dropped.append(name)
            else:
                done.append(name)
        self._write([{"do": "done", "staged": name} for name in done])
        self._write([{"do": "drop", "staged": name} for name in dropped])
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        for path in leftover_files(self.folder.parent):
            path.unlink()

    def _compact(self) -> None:
        lines = [
            {"do": "total", "order": key, "rows": total.rows, "before": total.version_before}
            for key, total in self._state.totals.items()
        ]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(_as_text(lines))
        sync_file(temporary)
        temporary.replace(self._path)
        sync_folders([self._path])
        self._state.lines = len(lines)

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to the journal; they are on disk when this returns."""
        if not lines:
            return
        is_new = not self._path.exists()
        with self._path.open("ab") as file:
            file.write(_as_text(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folders([self._path, self.folder])
        for line in lines:
            self._state.apply(line)


def _as_text(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _read(path: Path) -> _State:
    """Return the state that the lines of a journal lead to.

    A last line that was cut off is removed: it was not finished, so nothing was done after it.
    """
    state = _State()
    if not path.exists():
        return state
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            state.apply(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"Line {number} of {path} cannot be read: how many rows were removed before is "
                "not known.",
                code="purge.journal",
                fix="restore the file, or move it away and have every order answered anew",
            ) from error
    return state
