"""What a purge wrote down before it changed anything: the rows removed by order, and what was under
way when it fell.

One line of JSON each, synced before the file that it is about is swapped. Orders stand in it by a
digest, as their names hold member ids. Lines about one file: `stage` once its successor is on disk,
`done` once it is swapped and counted, `drop` if it never was.
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
_KEPT: Final = (_LINES, "lock")
_COMPACT_LINES_MIN: Final = 1000


def order_key(order_id: str) -> str:
    """Names an order without naming a member."""
    return hashlib.blake2b(order_id.encode(), digest_size=16).hexdigest()


def leftovers(directory: Path) -> list[Path]:
    """What lies in a directory's journal folder besides the journal: files of a purge under way, or
    of a killed one.
    """
    folder = directory / FOLDER
    return (
        sorted(path for path in folder.iterdir() if path.name not in _KEPT)
        if folder.is_dir()
        else []
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A file's successor, complete on disk under a name in the journal's folder."""

    file: str
    staged: str
    old: Fingerprint
    new: Fingerprint
    rows: Mapping[str, int]
    """Rows that it leaves out, by order key."""


@dataclass(slots=True)
class Total:
    """Rows removed for an order so far, and the data set's version before the first of them."""

    rows: int = 0
    version_before: str = ""


@dataclass(slots=True)
class _State:
    totals: dict[str, Total] = field(default_factory=dict)
    under_way: dict[str, tuple[Staged, str]] = field(default_factory=dict)
    lines: int = 0

    def take(self, line: Mapping[str, Any]) -> None:
        """Apply one line of the journal."""
        self.lines += 1
        if line["do"] == "stage":
            self.under_way[line["staged"]] = _staged(line), line["before"]
        elif line["do"] == "total":
            self.totals[line["order"]] = Total(line["rows"], line["before"])
        else:
            staged, before = self.under_way.pop(line["staged"])
            for order, rows in staged.rows.items() if line["do"] == "done" else ():
                total = self.totals.setdefault(order, Total(0, before))
                total.rows += rows


def _staged(line: Mapping[str, Any]) -> Staged:
    return Staged(
        file=line["file"],
        staged=line["staged"],
        old=Fingerprint(*line["old"]),
        new=Fingerprint(*line["new"]),
        rows=line["rows"],
    )


class Journal:
    """The journal of one directory, held by one purge at a time."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / FOLDER
        self._path = self.folder / _LINES
        self._state = _State()
        self._lock = -1
        self._number = 0

    def __enter__(self) -> Journal:
        """Take it, and settle what a killed purge left.

        Raises Unavailable while another purge holds it.
        """
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
        try:
            self._state = _read(self._path)
            self.settle()
            if self._state.lines > _COMPACT_LINES_MIN:
                self._compact()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._state.under_way:
                self._remove_leftovers()
        finally:
            os.close(self._lock)

    def totals(self) -> Mapping[str, Total]:
        """By order key, what has been removed so far."""
        return self._state.totals

    def new_name(self) -> str:
        """A name for a staged file: readers skip the folder, and would not take the suffix for data
        either.
        """
        self._number += 1
        return f"{self._number:08}.new"

    def stage(self, many: Sequence[Staged], version_before: str) -> None:
        """Write down what is about to be swapped; on disk when this returns."""
        self._write(
            {
                "do": "stage",
                "file": one.file,
                "staged": one.staged,
                "old": one.old,
                "new": one.new,
                "rows": dict(one.rows),
                "before": version_before,
            }
            for one in many
        )

    def settle(self) -> None:
        """Find out of each swap that is under way whether it took place, count it, and destroy what
        is left over.

        The successor is under its staged name until the swap, and never after it.
        """
        done: list[str] = []
        dropped: list[str] = []
        for name, (one, _before) in self._state.under_way.items():
            path, staged = self.folder.parent / one.file, self.folder / name
            if (
                staged.exists()
                and not is_content(staged, one.new)
                and not is_content(staged, one.old)
            ):
                # It fell just when it had taken out what somebody else had put there, and was about
                # to put that back.
                put_back(path, staged, one.new)
            (dropped if is_content(staged, one.new) else done).append(name)
        self._write({"do": "done", "staged": name} for name in done)
        self._write({"do": "drop", "staged": name} for name in dropped)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        for path in leftovers(self.folder.parent):
            path.unlink()

    def _compact(self) -> None:
        lines = [
            {"do": "total", "order": key, "rows": total.rows, "before": total.version_before}
            for key, total in self._state.totals.items()
        ]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sync_file(temporary)
        temporary.replace(self._path)
        sync_folders([self._path])
        self._state.lines = len(lines)

    def _write(self, lines: Any) -> None:
        many = list(lines)
        if not many:
            return
        is_new = not self._path.exists()
        with self._path.open("ab") as file:
            file.write("".join(json.dumps(line) + "\n" for line in many).encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folders([self._path, self.folder])
        for line in many:
            self._state.take(line)


def _read(path: Path) -> _State:
    """The state that the lines lead to.

    A torn last line was not finished, so nothing was done after it.
    """
    state = _State()
    if not path.exists():
        return state
    text = path.read_bytes()
    whole, torn = text[: text.rfind(b"\n") + 1], text[text.rfind(b"\n") + 1 :]
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            state.take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"Line {number} of {path} cannot be read: how many rows were removed before is "
                "not known.",
                code="purge.journal",
                fix="restore the file, or move it away and have every order answered anew",
            ) from error
    return state
