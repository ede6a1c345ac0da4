"""A view that another process reads: it says what the client says, and STALE whenever that is not
proven.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from tests.strategies import PURPOSE, pause
from tests.unit.trainer.deciding.test_decide_table import (
    HOME,
    MEMBERS,
    OUT,
    new_snapshot,
    put,
    record_of,
)

from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import Micros, Reason
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.sharing import SharedSnapshot, SnapshotWriter
from consentry.wire import catalog as catalogs
from consentry.wire.catalog import Catalog, load_catalog, register_all
from consentry.wire.controls import write_control
from consentry.wire.frontiers import Frontier
from consentry.wire.messages import StoredMessage

TABLE = pa.table({"member_id": MEMBERS})


class Shared:
    """A view, its writer, and a reader with a clock of its own."""

    def __init__(self, directory: Path) -> None:
        registry = catalogs.InMemoryRegistry()
        register_all(registry, "consentry")
        self.catalog: Catalog = load_catalog(registry, "consentry")
        self.snapshot, self.controls, self.detail, self.now = (
            new_snapshot(),
            list[StoredMessage](),
            "",
            Micros(time.time_ns() // 1000),
        )
        for control in self.snapshot.controls.log:
            value = write_control(control, self.catalog)
            self.controls.append(
                StoredMessage(0, len(self.controls), b"key", value, control.recorded_at)
            )
        put(self.snapshot, *(record_of(member, HOME) for member in MEMBERS))
        self.prove()
        self.directory = directory
        self.again()
        self.reader = SharedSnapshot(directory, staleness_seconds=5.0, clock=lambda: self.now)

    def again(self) -> None:
        """A writer, which writes when the test says so."""
        self.writer = SnapshotWriter(
            self.snapshot,
            self.directory,
            catalog=self.catalog,
            detail=lambda: self.detail,
            controls=self.controls,
        )
        self.writer._stopping.set()

    def prove(self) -> None:
        for partition in range(self.snapshot.partitions):
            self.snapshot.apply_frontier(
                Frontier(partition, "g", self.now, 0, 0, 0, False, "00" * 8)
            )
        self.snapshot.settle_frontiers()

    def reasons(self) -> list[Reason]:
        return [
            REASONS[place]
            for place in self.reader.decide_table(TABLE, purpose=PURPOSE).reasons.tolist()
        ]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    found = Shared(tmp_path / "view")
    yield found
    os.close(found.writer._lock)


def test_what_the_client_learns_the_other_process_knows(shared: Shared) -> None:
    """An opt-out in the middle of an epoch has to reach the workers that read."""
    assert shared.reasons() == [Reason.DEFAULT_ON] * len(MEMBERS)

    put(shared.snapshot, record_of(MEMBERS[0], HOME, OUT))
    before = shared.reader.snapshot_id
    shared.snapshot.positions["records", 0] = 1
    shared.writer.write()

    assert shared.reasons()[0] is Reason.OPTED_OUT
    assert shared.reader.snapshot_id != before
    imposed = pause(1, "US", on=2)
    shared.controls.append(
        StoredMessage(0, 99, b"key", write_control(imposed, shared.catalog), imposed.recorded_at)
    )
    shared.snapshot.apply_control(imposed)
    shared.writer.write()
    assert set(shared.reasons()) == {Reason.PAUSED}


def test_who_is_held_is_held_there_too(shared: Shared) -> None:
    """Something about them could not be read: it may have been the opt-out."""
    shared.snapshot.quarantine([MEMBERS[1].encode()])
    shared.writer.write()

    assert shared.reasons()[1] is Reason.QUARANTINED


@pytest.mark.parametrize("broken", ["detail", "old", "gone", "damaged", "foreign", "records"])
def test_everything_is_stale_while_it_is_not_proven(shared: Shared, broken: str) -> None:
    """Workers go on reading when the client has died; what they hold gets older and looks the
    same.
    """
    state = shared.directory / "state.json"
    assert Reason.STALE not in shared.reasons()
    if broken == "detail":
        shared.detail = "the client was stopped"
        shared.writer.write()
    elif broken == "old":
        shared.now = Micros(shared.now + 5_100_000)
    elif broken == "gone":
        state.unlink()
    elif broken == "damaged":
        state.write_text(state.read_text()[:-9])
    elif broken == "foreign":
        state.write_text(state.read_text().replace("records-", "../records-"))
    else:
        put(shared.snapshot, record_of(MEMBERS[0], HOME, OUT))
        shared.writer.write()
        for path in shared.directory.glob("records-*"):
            path.unlink()
        shared.reader = SharedSnapshot(
            shared.directory, staleness_seconds=5.0, clock=lambda: shared.now
        )

    assert set(shared.reasons()) == {Reason.STALE}
    assert shared.reader.stale_detail


@pytest.mark.parametrize(
    "part", ["groups", "steps", "prints", "ids", "id bytes", "offsets", "members"]
)
def test_a_damaged_file_of_records_excludes_everybody(shared: Shared, part: str) -> None:
    """A member whom a damaged index does not find is nobody, and nobody is allowed by default."""
    put(shared.snapshot, record_of(MEMBERS[0], HOME, OUT))
    shared.writer.write()
    [name] = json.loads((shared.directory / "state.json").read_text())["segments"]
    path = shared.directory / name
    content = bytearray(path.read_bytes())
    head = json.loads(content[8:1024])
    if part == "members":
        content[8:1024] = json.dumps(head | {"members": 0}).encode().ljust(1016)
    else:
        at, size = head["buffers"][
            ["groups", "steps", "prints", "ids", "id bytes", "offsets"].index(part)
        ]
        content[at : at + size] = bytes(one ^ 1 for one in content[at : at + size])
    path.write_bytes(content)

    reader = SharedSnapshot(shared.directory, staleness_seconds=5.0, clock=lambda: shared.now)

    decisions = reader.decide_table(pa.table({"member_id": MEMBERS}), purpose=PURPOSE)
    assert set(decisions.counts()) == {Reason.STALE}


def test_it_recovers_once_the_client_writes_again(shared: Shared) -> None:
    """An outage ends the reading, not the job."""
    shared.now = Micros(shared.now + 60_000_000)
    assert set(shared.reasons()) == {Reason.STALE}

    shared.prove()
    shared.writer.write()

    assert set(shared.reasons()) == {Reason.DEFAULT_ON}


def test_it_can_be_sent_to_another_process(shared: Shared) -> None:
    """Workers are forked, spawned, or on a cluster's other side of the machine."""
    reader = SharedSnapshot(shared.directory, staleness_seconds=1e6)
    assert pickle.loads(pickle.dumps(reader)).snapshot_id == reader.snapshot_id  # noqa: S301 - our own bytes
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(judged, (reader,))

    assert found == ["DEFAULT_ON"] * len(MEMBERS)


def judged(reader: SharedSnapshot) -> list[str]:
    return [
        REASONS[place].value
        for place in reader.decide_table(TABLE, purpose=PURPOSE).reasons.tolist()
    ]


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, shared: Shared) -> None:
    """Whoever writes there says who may be trained on."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)

    with pytest.raises(InvalidInput) as caught:
        SnapshotWriter(
            Snapshot(1, shared.snapshot.controls.jurisdictions),
            directory,
            catalog=shared.catalog,
            detail=lambda: "",
            controls=[],
        )
    assert caught.value.code == "trainer.shared_directory"


def test_a_second_client_cannot_share_the_same_directory(shared: Shared) -> None:
    """Readers would see now one view and now the other, each of them fresh."""
    with pytest.raises(Refused) as caught:
        shared.again()
    assert caught.value.code == "trainer.shared_directory_taken"


def test_a_reader_forgets_what_the_client_before_wrote(shared: Shared) -> None:
    """A job that begins anew has the same directory; what a reader remembers by name was
    another's.
    """
    assert set(shared.reasons()) == {Reason.DEFAULT_ON}
    os.close(shared.writer._lock)  # as when the process ends
    put(shared.snapshot, *(record_of(member, HOME, OUT) for member in MEMBERS))

    shared.again()

    assert set(shared.reasons()) == {Reason.OPTED_OUT}


def test_a_clock_that_goes_back_makes_no_old_view_fresh(shared: Shared) -> None:
    """An opt-out of the hour in between is in nobody's view."""
    shared.now = Micros(shared.now - 3_600_000_000)

    assert set(shared.reasons()) == {Reason.STALE}


def test_old_files_do_not_pile_up(shared: Shared) -> None:
    """A job runs for weeks."""
    for number in range(30):
        put(shared.snapshot, record_of(f"new-{number}", HOME))
        shared.writer.write()
        shared.reasons()

    assert len(list(shared.directory.iterdir())) < 14
