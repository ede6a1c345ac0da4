"""A client's view for other processes: written to a directory by the client, read by workers that
have no Kafka.

Records lie in files that never change and are mapped, so that all processes share their pages; what
changes is one small file that is replaced whole. A worker that finds it too old, damaged or gone
excludes everything.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, Protocol

import pyarrow as pa
import structlog

from consentry.domain.controls import Controls
from consentry.domain.errors import ConsentryError, InvalidInput, Refused
from consentry.domain.values import Micros
from consentry.ops.clock import Clock, system_clock
from consentry.record_index import RecordIndex, Segment
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import Decisions, decide_table
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.catalog import Catalog, catalog_of_ids
from consentry.wire.controls import read_control_or_pause
from consentry.wire.freshness import FOREVER, stale_age
from consentry.wire.frontiers import Frontier
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS, topics
from consentry.wire.tokens import TokenKeys, read_token

EVERY_SECONDS: Final = 0.25
"""So often what changed is written: it adds to the staleness of workers, which have the client's
bound.
"""
_STATE: Final = "state.json"
_LOCK: Final = "lock"
_FORMAT: Final = 1
_KEPT_STATES: Final = 4
"""Files of so many earlier states stay, for workers that are just opening them."""
_TRIES: Final = 5
_LOG = structlog.get_logger(__name__)


class ControlMessage(Protocol):
    """A control's message as it stands in the log."""

    @property
    def offset(self) -> int: ...
    @property
    def appended_at(self) -> Micros: ...
    @property
    def value(self) -> bytes | None: ...


class SnapshotWriter:
    """Writes a view to a directory again and again, on a thread of its own, until `stop`.

    `detail` says why nothing is allowed now, `controls` gives every control's message so far, in
    log order.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        directory: Path,
        *,
        catalog: Catalog,
        detail: Callable[[], str],
        controls: Sequence[ControlMessage],
    ) -> None:
        self.directory = directory
        self._snapshot = snapshot
        self._detail = detail
        self._controls = controls
        self._schema_ids = catalog.ids_for(topics()[CONTROLS].records)
        # Names are this writer's own: what a reader remembers by name is never another one's.
        self._writer = secrets.token_hex(8)
        self._names: dict[Segment, str] = {}
        self._number = 0
        self._controls_name, self._controls_count = "", -1
        self._kept: list[set[str]] = []
        self._stopping = threading.Event()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_own()
        self._lock = self._locked()
        for old in (
            *directory.glob("records-*"),
            *directory.glob("controls-*"),
            *directory.glob(_STATE),
        ):
            old.unlink()
        self.write()
        self._thread = threading.Thread(target=self._run, name="share-view", daemon=True)
        self._thread.start()

    def _check_own(self) -> None:
        """Raise InvalidInput where somebody else could write what the workers believe."""
        told = self.directory.stat()
        if told.st_uid != os.geteuid() or told.st_mode & 0o022:
            raise InvalidInput(
                f"The directory {str(self.directory)!r} of the shared view can be written by "
                "others.",
                code="trainer.shared_directory",
                fix="name one of your own with mode 0700, or one that does not exist yet",
            )

    def _locked(self) -> int:
        """The file with the directory's lock, which ends with the process.

        Raises Refused where another has it.
        """
        lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise Refused(
                f"Another client shares its view in {str(self.directory)!r}.",
                code="trainer.shared_directory_taken",
                fix="name a directory for each client, such as one with the rank in its name",
            ) from error
        return lock

    def stop(self) -> None:
        """Write once more, and end."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join(timeout=10)
            self._write_or_say_why()
            os.close(self._lock)

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_SECONDS):
            self._write_or_say_why()

    def _write_or_say_why(self) -> None:
        try:
            self.write()
        except (OSError, ConsentryError) as error:
            # What is there grows old, and the workers exclude everything: nothing else has to be
            # done.
            _LOG.error("view_not_shared", error_class=type(error).__name__)

    def write(self) -> None:
        """Write the view as it is now."""
        snapshot = self._snapshot
        # In this order: what is said to be known has to be in what is written after it.
        state: dict[str, Any] = {
            "format": _FORMAT,
            "writer": self._writer,
            "detail": self._detail(),
            "partitions": snapshot.partitions,
            "positions": [
                [topic, partition, at]
                for (topic, partition), at in dict(snapshot.positions).items()
            ],
            "frontiers": [list(frontier) for frontier in snapshot.freshness.counted().values()],
            "controls": self._write_controls(),
        }
        state["segments"] = [
            self._write_segment(segment) for segment in snapshot.records.segments()
        ]
        state["quarantined"] = [_text(member) for member in snapshot.quarantined]
        state["tainted"] = sorted(snapshot.freshness.tainted)
        temporary = self.directory / f".{_STATE}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self.directory / _STATE)
        self._forget({*state["segments"], state["controls"]})

    def _write_controls(self) -> str:
        count = len(self._controls)
        if count != self._controls_count:
            messages = [
                [one.offset, one.appended_at, None if one.value is None else _text(one.value)]
                for one in self._controls[:count]
            ]
            self._controls_name, self._controls_count = (
                f"controls-{self._writer}-{count}.json",
                count,
            )
            content = {
                "schema_ids": {name: list(ids) for name, ids in self._schema_ids.items()},
                "messages": messages,
            }
            (self.directory / self._controls_name).write_text(json.dumps(content))
        return self._controls_name

    def _write_segment(self, segment: Segment) -> str:
        name = self._names.get(segment)
        if name is None:
            self._number += 1
            name = self._names[segment] = f"records-{self._writer}-{self._number}"
            segment.save(self.directory / name)
        return name

    def _forget(self, named: set[str]) -> None:
        """Remove what no late state names any more."""
        self._kept = [*self._kept, named][-_KEPT_STATES:]
        kept = set().union(*self._kept)
        for segment, name in list(self._names.items()):
            if name not in kept:
                del self._names[segment]
                (self.directory / name).unlink(missing_ok=True)
        for path in self.directory.glob("controls-*"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


class SharedSnapshot:
    """Judges by the view that a client writes to `directory`.

    Can be pickled, forked and opened in any process.

    Everything is STALE while the file is missing, damaged, or older than `staleness_seconds` by its
    frontiers.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        staleness_seconds: float,
        clock: Clock = system_clock,
        token_keys: TokenKeys | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._staleness_seconds = staleness_seconds
        self._clock = clock
        self._token_keys = token_keys or TokenKeys()
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        # The keys of tokens stay where they are: a worker takes any token, as it only adds a
        # demand.
        return {
            "directory": self.directory,
            "_staleness_seconds": self._staleness_seconds,
            "_clock": self._clock,
            "_token_keys": TokenKeys(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._snapshot: Snapshot | None = None
        self._read_from: tuple[int, int] = (0, 0)
        self._controls_name = self._writer = ""
        self._segments: dict[str, Segment] = {}
        self._detail = "the shared view has not been read"
        self._reading = threading.Lock()

    def portable(self) -> SharedSnapshot:
        """Itself: it may be sent to other processes as it is."""
        return self

    @property
    def snapshot(self) -> Snapshot:
        """What was read last. Raises InvalidInput before anything could be."""
        self._refresh()
        if self._snapshot is None:
            raise InvalidInput(
                f"There is no shared view in {str(self.directory)!r}: {self._detail}.",
                code="trainer.no_shared_view",
                fix="have the client share its view there before the workers begin",
            )
        return self._snapshot

    @property
    def snapshot_id(self) -> str:
        """See Judge."""
        return self.snapshot.snapshot_id

    @property
    def stale_detail(self) -> str:
        """See Judge."""
        self._refresh()
        if self._detail or self._snapshot is None:
            return self._detail
        age = self._snapshot.staleness_seconds(self._clock())
        return stale_age("the shared snapshot", age, self._staleness_seconds)

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
        wait_seconds: float = 3.0,
    ) -> Decisions:
        """See Judge. A token is waited for, at most so long."""
        detail = self._behind(at_least, wait_seconds)
        columns = find_columns(table.column_names, columns)
        snapshot = self._snapshot or Snapshot(1, iso_jurisdictions())
        return decide_table(
            table,
            snapshot,
            purpose=purpose,
            at=max(self._clock(), snapshot.newest_frontier),
            known_at=FOREVER,
            columns=columns,
            is_fresh=not detail,
        )

    def _behind(self, at_least: str | None, wait_seconds: float) -> str:
        if at_least is None:
            return self.stale_detail
        token = read_token(at_least, self._token_keys)
        until = monotonic() + wait_seconds
        while detail := self.stale_detail or self.snapshot.missing(token):
            if monotonic() > until:
                break
            sleep(EVERY_SECONDS / 4)
        return detail

    def _refresh(self) -> None:
        """Read what was written since, if anything was."""
        with self._reading:
            for _ in range(_TRIES):
                try:
                    self._read_newer()
                except FileNotFoundError:
                    # The client may just have replaced what was to be opened.
                    self._detail, self._read_from = "the shared view is not there", (0, 0)
                except (OSError, ValueError, KeyError, TypeError, ConsentryError) as error:
                    self._detail, self._read_from = (
                        f"the shared view cannot be read ({type(error).__name__})",
                        (0, 0),
                    )
                    return
                else:
                    return

    def _read_newer(self) -> None:
        told = (self.directory / _STATE).stat()
        stamp = (told.st_mtime_ns, told.st_ino)
        if stamp != self._read_from:
            self._read()
            self._read_from = stamp

    def _read(self) -> None:
        state = json.loads((self.directory / _STATE).read_text())
        if state["format"] != _FORMAT:
            raise ValueError("another format")
        if state["writer"] != self._writer:
            # Another client began anew: what it has not read yet must not be kept from the one
            # before.
            self._snapshot, self._controls_name, self._segments = None, "", {}
        snapshot = self._snapshot or Snapshot(int(state["partitions"]), iso_jurisdictions())
        names = [_plain(name) for name in state["segments"]]
        segments = {
            name: self._segments.get(name) or Segment.open(self.directory / name) for name in names
        }
        if state["controls"] != self._controls_name:
            snapshot.controls = _controls(self.directory / _plain(state["controls"]))
            self._controls_name = state["controls"]
        if list(segments) != list(self._segments):
            # Made anew and set at once: who is just asking goes on with the one they have.
            snapshot.records = RecordIndex.counted(list(segments.values()), 0)
            self._segments = segments
        snapshot.quarantine(base64.b64decode(member) for member in state["quarantined"])
        snapshot.positions.update(
            {(topic, partition): at for topic, partition, at in state["positions"]}
        )
        for frontier in state["frontiers"]:
            snapshot.apply_frontier(Frontier(*frontier))
        snapshot.settle_frontiers()
        snapshot.freshness.tainted = set(state["tainted"])
        self._snapshot, self._detail, self._writer = (
            snapshot,
            str(state["detail"]),
            str(state["writer"]),
        )


def _controls(path: Path) -> Controls:
    content = json.loads(path.read_text())
    catalog = catalog_of_ids({name: tuple(ids) for name, ids in content["schema_ids"].items()})
    found = Controls(iso_jurisdictions())
    for offset, appended_at, value in content["messages"]:
        raw = None if value is None else base64.b64decode(value)
        found = found.after(
            read_control_or_pause(
                raw, offset=offset, appended_at=Micros(appended_at), catalog=catalog
            )
        )
    return found


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _plain(name: Any) -> str:
    if not isinstance(name, str) or "/" in name or not name.startswith(("records-", "controls-")):
        raise ValueError("a file of another directory")
    return name
