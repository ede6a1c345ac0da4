"""A trainer's view from a bundle is what the bundler held, however it is cut into files, deltas and
segments.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bundles.world import NOW, History, Log, populated, published

from consentry.bundles import (
    BundleRefused,
    BundleState,
    BundleStore,
    PublicKeys,
    SigningKey,
    open_bundle,
    why_no_delta,
)
from consentry.bundles import writer as bundle_writing
from consentry.record_index import segment_writer as writing
from consentry.trainer import bundled
from consentry.trainer.deciding.snapshot import Snapshot

KEY = SigningKey.generate()
KEYS = PublicKeys([KEY.public])
THREADS = """
import os, sys
from pathlib import Path
from consentry.trainer.bundled import snapshot_of
from consentry.bundles import BundleStore, PublicKeys, open_bundle, restore

place = Path(sys.argv[1])
keys, now = PublicKeys.read(place / "key.pub"), int(sys.argv[2])
bundle = open_bundle(BundleStore(str(place / "bundles")), keys=keys, namespace=None, now=now)
before = len(os.listdir("/proc/self/task"))
bundle.check_files(), snapshot_of(bundle), restore(bundle)
print(before, len(os.listdir("/proc/self/task")))
"""


def snapshot_of(store: BundleStore, directory: Path | None = None) -> Snapshot:
    """The view of the newest bundle."""
    return bundled.snapshot_of(
        open_bundle(store, keys=KEYS, namespace="consentry", now=NOW), directory=directory
    )


def assert_same(snapshot: Snapshot, state: BundleState) -> None:
    """Whether the view holds what the state holds."""
    assert dict(snapshot.records) == dict(state.items())
    assert len(snapshot.records) == len(state)
    assert snapshot.quarantined == state.damaged
    assert snapshot.controls == state.controls
    assert snapshot.freshness.counted() == state.freshness.counted()
    assert snapshot.freshness.tainted == state.freshness.tainted


@given(st.integers(0, 2**32), st.lists(st.booleans(), max_size=4))
@settings(max_examples=30)
def test_a_view_holds_what_the_bundler_held(seed: int, deltas: list[bool]) -> None:
    """Who opted out in the third delta is excluded as if it had always been there."""
    history, store = History(seed), BundleStore(f"memory://{uuid.uuid4().hex}")
    history.step()
    newest = published(store, history.log.state, KEY)
    for number, wants_delta in enumerate(deltas, start=2):
        history.step()
        can_delta = wants_delta and not why_no_delta(newest, history.log.state)
        newest = published(
            store, history.log.state, KEY, sequence=number, parent=newest if can_delta else None
        )

    assert_same(snapshot_of(store), history.log.state)


def test_records_that_fill_more_than_one_segment_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times ten million members do not fit in one."""
    store, state = BundleStore(str(tmp_path / "bundles")), populated().state
    published(store, state, KEY, file_rows=3)
    monkeypatch.setattr(writing, "BYTES_MAX", 1)

    snapshot = snapshot_of(store)

    assert [len(segment) for segment in snapshot.records.segments()] == [2, 3, 2], (
        "one row has no record"
    )
    assert_same(snapshot, state)


def test_who_came_in_a_delta_is_there_though_the_snapshot_had_nobody(tmp_path: Path) -> None:
    """The first bundle of a new platform is empty."""
    log, store = Log(), BundleStore(str(tmp_path / "bundles"))
    log.control()
    first = published(store, log.state, KEY)
    for member, value in populated().state.items():
        log.raw(member.decode(), value)
    log.raw("m:damaged", b"not a record")
    published(store, log.state, KEY, sequence=2, parent=first)

    snapshot = snapshot_of(store)

    assert b"m:out" in snapshot.records
    assert_same(snapshot, log.state)


def test_the_files_of_records_have_no_name_and_lie_where_they_should(tmp_path: Path) -> None:
    """A trainer that is killed leaves no gigabytes behind."""
    store = BundleStore(str(tmp_path / "bundles"))
    published(store, populated().state, KEY)
    place = tmp_path / "records"
    with pytest.raises(FileNotFoundError):
        snapshot_of(store, place)
    place.mkdir()

    snapshot = snapshot_of(store, place)

    assert list(place.iterdir()) == []
    assert len(snapshot.records) == len(populated().state)


def test_a_member_in_two_segments_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two records counts is not said; one of them may be the opt-out."""
    store, state = BundleStore(str(tmp_path / "bundles")), populated().state
    monkeypatch.setattr(
        bundle_writing, "in_hash_order", lambda members: [b"m:out", *sorted(members)]
    )
    published(store, state, KEY, file_rows=3)
    monkeypatch.setattr(writing, "BYTES_MAX", 1)

    with pytest.raises(BundleRefused) as caught:
        snapshot_of(store)
    assert caught.value.code == "bundle.malformed"


def test_reading_a_bundle_starts_no_threads(tmp_path: Path) -> None:
    """Arrow's threads, when the process ends just as they begin, end it with SIGABRT in place of
    its exit status.
    """
    published(BundleStore(str(tmp_path / "bundles")), populated().state, KEY)
    (tmp_path / "key.pub").write_bytes(KEY.public_text())

    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(tmp_path), str(NOW)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    before, after = done.stdout.split()
    assert before == after
