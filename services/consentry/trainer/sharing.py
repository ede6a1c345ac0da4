"""A client's snapshot for other processes: the client writes a directory, workers read it.

The workers need no Kafka. Records lie in files that never change and are mapped, so that all
processes share their pages; the rest is one small file that is replaced whole. A worker that finds
it too old, damaged or gone excludes everything.
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
"""The time between two writes: it adds to the staleness of workers, which have the client's bound.
"""
_STATE: Final = "state.json"
_LOCK: Final = "lock"
_FORMAT: Final = 1
_STATES_KEPT: Final = 4
"""The states whose files stay, for workers that are just opening them."""
_READ_ATTEMPTS_MAX: Final = 5
_LOG = structlog.get_logger(__name__)


class ControlMessage(Protocol):
    """A control's message as it stands in the log, shared with worker processes."""

    @property
    def offset(self) -> int: ...
    @property
    def appended_at(self) -> Micros: ...
    @property
    def value(self) -> bytes | None: ...


class SnapshotWriter:
    """Shares a client's snapshot: writes it to a directory again and again, until `stop`.

    It does so on a thread of its own. `detail` returns why nothing is allowed now. `controls` has
    every control's message so far, in log order; it grows meanwhile.
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
        # Names are this writer's own: a file that a reader remembers by name is never another's.
        self._writer = secrets.token_hex(8)
        self._names: dict[Segment, str] = {}
        self._segments_written = 0
        self._controls_name, self._controls_count = "", -1
        self._names_of_states: list[set[str]] = []
        self._stopping = threading.Event()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_own()
        self._lock = self._take_lock()
        for pattern in ("records-*", "controls-*", _STATE):
            for old_file in directory.glob(pattern):
                old_file.unlink()
        self.write()
        self._thread = threading.Thread(target=self._run, name="share-view", daemon=True)
        self._thread.start()

    def _check_own(self) -> None:
        """Raise InvalidInput where somebody else could write what the workers believe."""
        status = self.directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise InvalidInput(
                f"The directory {str(self.directory)!r} of the shared snapshot can be written by "
                "others.",
                code="trainer.shared_directory",
                fix="name one of your own with mode 0700, or one that does not exist yet",
            )

    def _take_lock(self) -> int:
        """Return the file with the directory's lock, which ends with the process.

        Raises Refused where another client has it.
        """
        lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise Refused(
                f"Another client shares its snapshot in {str(self.directory)!r}.",
                code="trainer.shared_directory_taken",
                fix="name a directory for each client, such as one with the rank in its name",
            ) from error
        return lock

    def stop(self) -> None:
        """Write the shared snapshot once more, and end."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join(timeout=10)
            self._write_or_log()
            os.close(self._lock)

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_SECONDS):
            self._write_or_log()

    def _write_or_log(self) -> None:
        try:
            self.write()
        except (OSError, ConsentryError) as error:
            # The state that is there grows old, and the workers exclude everything: that is enough.
            _LOG.error("view_not_shared", error_class=type(error).__name__)

    def write(self) -> None:
        """Write the shared snapshot as it is now."""
        snapshot = self._snapshot
        # In this order: how far the log is read is noted first, and the controls and records that
        # are written after it hold at least that much.
        detail = self._detail()
        positions = dict(snapshot.positions)
        frontiers = snapshot.freshness.counted()
        controls_name = self._write_controls()
        segment_names = [self._write_segment(segment) for segment in snapshot.records.segments()]
        state: dict[str, Any] = {
            "format": _FORMAT,
            "writer": self._writer,
            "detail": detail,
            "partitions": snapshot.partitions,
            "positions": [[*log_partition, offset] for log_partition, offset in positions.items()],
            "frontiers": [list(frontier) for frontier in frontiers.values()],
            "controls": controls_name,
            "segments": segment_names,
            "quarantined": [_text(member) for member in snapshot.quarantined],
            "tainted": sorted(snapshot.freshness.tainted),
        }
        temporary = self.directory / f".{_STATE}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self.directory / _STATE)
        self._delete_unnamed({*segment_names, controls_name})

    def _write_controls(self) -> str:
        count = len(self._controls)
        if count != self._controls_count:
            messages = [_control_fields(control) for control in self._controls[:count]]
            self._controls_name = f"controls-{self._writer}-{count}.json"
            self._controls_count = count
            content = {
                "schema_ids": {name: list(ids) for name, ids in self._schema_ids.items()},
                "messages": messages,
            }
            (self.directory / self._controls_name).write_text(json.dumps(content))
        return self._controls_name

    def _write_segment(self, segment: Segment) -> str:
        name = self._names.get(segment)
        if name is None:
            self._segments_written += 1
            name = f"records-{self._writer}-{self._segments_written}"
            self._names[segment] = name
            segment.save(self.directory / name)
        return name

    def _delete_unnamed(self, names: set[str]) -> None:
        """Delete the files that none of the latest states names."""
        self._names_of_states = [*self._names_of_states, names][-_STATES_KEPT:]
        names_kept = set().union(*self._names_of_states)
        for segment, name in list(self._names.items()):
            if name not in names_kept:
                del self._names[segment]
                (self.directory / name).unlink(missing_ok=True)
        for path in self.directory.glob("controls-*"):
            if path.name not in names_kept:
                path.unlink(missing_ok=True)


class SharedSnapshot:
    """A Decider of a worker process, by the snapshot that a client shares in `directory`.

    It can be pickled, forked and opened in any process. Everything is STALE while the file is
    missing, damaged, or older than `staleness_seconds` by its frontiers.
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
        # The token keys stay in this process: a worker takes any token, as it only adds a demand.
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
        self._detail = "the shared snapshot has not been read"
        self._reading = threading.Lock()

    def portable(self) -> SharedSnapshot:
        """Return the shared snapshot itself: it may be sent to other processes as it is."""
        return self

    @property
    def snapshot(self) -> Snapshot:
        """The shared snapshot that was read last. Raises InvalidInput if none could be."""
        self._refresh()
        if self._snapshot is None:
            raise InvalidInput(
                f"There is no shared snapshot in {str(self.directory)!r}: {self._detail}.",
                code="trainer.no_shared_view",
                fix="have the client share its snapshot there before the workers begin",
            )
        return self._snapshot

    @property
    def snapshot_id(self) -> str:
        """The name of the shared snapshot that answers rest on; see Decider."""
        return self.snapshot.snapshot_id

    @property
    def stale_detail(self) -> str:
        """The reason why the shared snapshot allows nothing now; see Decider."""
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
        """Decide every row by the shared snapshot; see Decider.

        It waits for the token `at_least`, at most `wait_seconds`.
        """
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
        """Read the state if it was written since."""
        with self._reading:
            for _ in range(_READ_ATTEMPTS_MAX):
                try:
                    self._read_newer()
                except FileNotFoundError:
                    # The client may just have replaced what was to be opened.
                    self._detail, self._read_from = "the shared snapshot is not there", (0, 0)
                except (OSError, ValueError, KeyError, TypeError, ConsentryError) as error:
                    self._detail = f"the shared snapshot cannot be read ({type(error).__name__})"
                    self._read_from = (0, 0)
                    return
                else:
                    return

    def _read_newer(self) -> None:
        status = (self.directory / _STATE).stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._read_from:
            self._read()
            self._read_from = stamp

    def _read(self) -> None:
        state = json.loads((self.directory / _STATE).read_text())
        if state["format"] != _FORMAT:
            raise ValueError("another format")
        if state["writer"] != self._writer:
            # Another client began anew: nothing may stay of the one before that this one has not
            # read yet.
            self._snapshot, self._controls_name, self._segments = None, "", {}
        snapshot = self._snapshot or Snapshot(int(state["partitions"]), iso_jurisdictions())
        segments: dict[str, Segment] = {}
        for name in map(_file_name, state["segments"]):
            segments[name] = self._segments.get(name) or Segment.open(self.directory / name)
        if state["controls"] != self._controls_name:
            snapshot.controls = _read_controls(self.directory / _file_name(state["controls"]))
            self._controls_name = state["controls"]
        if list(segments) != list(self._segments):
            # A new index, set at once: a question that is being answered goes on with the old one.
            snapshot.records = RecordIndex.counted(list(segments.values()), 0)
            self._segments = segments
        snapshot.quarantine(base64.b64decode(member) for member in state["quarantined"])
        for topic, partition, offset in state["positions"]:
            snapshot.positions[topic, partition] = offset
        for frontier in state["frontiers"]:
            snapshot.apply_frontier(Frontier(*frontier))
        snapshot.settle_frontiers()
        snapshot.freshness.tainted = set(state["tainted"])
        self._snapshot, self._writer = snapshot, str(state["writer"])
        self._detail = str(state["detail"])


def _control_fields(control: ControlMessage) -> list[object]:
    value = None if control.value is None else _text(control.value)
    return [control.offset, control.appended_at, value]


def _read_controls(path: Path) -> Controls:
    content = json.loads(path.read_text())
    catalog = catalog_of_ids({name: tuple(ids) for name, ids in content["schema_ids"].items()})
    controls = Controls(iso_jurisdictions())
    for offset, appended_at, value in content["messages"]:
        raw = None if value is None else base64.b64decode(value)
        control = read_control_or_pause(
            raw, offset=offset, appended_at=Micros(appended_at), catalog=catalog
        )
        controls = controls.after(control)
    return controls


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _file_name(name: Any) -> str:
    """Return the name of a file in the directory. Raises ValueError for any other."""
    if not isinstance(name, str) or "/" in name or not name.startswith(("records-", "controls-")):
        raise ValueError("a file of another directory")
    return name
