"""Snapshots and deltas: what they say together, and that nobody ever sees half of one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bundles.world import NOW, PARTITIONS, History, Log, populated, published

from consentry.bundles import (
    Bundle,
    BundleStore,
    Manifest,
    PublicKeys,
    Regression,
    SigningKey,
    open_bundle,
    prune,
    publish,
    restore,
    why_no_delta,
    write_bundle,
)
from consentry.bundles.reader import latest
from consentry.domain.events import MemberEvent
from consentry.domain.values import Micros
from consentry.record_index import in_hash_order
from consentry.wire.partitions import partition_of

KEY = SigningKey.generate()
KEYS = PublicKeys([KEY.public])


def memory() -> BundleStore:
    """A store of its own that is no file system: no renames, no links."""
    return BundleStore(f"memory://{uuid.uuid4().hex}")


def opened(store: BundleStore, **more: Any) -> Bundle:
    """The newest bundle."""
    return open_bundle(store, keys=KEYS, namespace="consentry", now=NOW, **more)


def rows(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Every member's last row, all columns; nothing for one of whom nothing is held any more."""
    found: dict[str, dict[str, Any]] = {}
    for batch in bundle.record_batches(columns=None):
        for row in batch.to_pylist():
            found[row["member_id"]] = row
    return {
        member: row for member, row in found.items() if row["record"] is not None or row["damaged"]
    }


@given(st.integers(0, 2**32), st.lists(st.booleans(), min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_snapshot_and_its_deltas_say_what_one_snapshot_of_the_later_state_says(
    seed: int, deltas: list[bool]
) -> None:
    """A member whose opt-out came in the third delta is excluded as if it had always been there."""
    history, store, whole = History(seed), memory(), memory()
    history.step()
    newest = published(store, history.log.state, KEY)
    for number, wants_delta in enumerate(deltas, start=2):
        history.step()
        can_delta = wants_delta and not why_no_delta(newest, history.log.state)
        newest = published(
            store, history.log.state, KEY, sequence=number, parent=newest if can_delta else None
        )
    published(whole, history.log.state, KEY, sequence=len(deltas) + 1)
    chained, full = opened(store), opened(whole)
    assert rows(chained) == rows(full)
    assert chained.controls() == full.controls()
    for purpose in ("ads", "genai_training"):
        assert chained.own_exclusions(purpose) == full.own_exclusions(purpose)
    told = [
        (one.manifest.partitions, one.manifest.newest_policy, one.positions)
        for one in (chained, full)
    ]
    assert told[0] == told[1]
    one, other = restore(chained), restore(full)
    state = history.log.state
    for restored in (one, other):
        assert dict(restored.items()) == dict(state.items())
        assert restored.damaged == state.damaged
        assert restored.controls == state.controls
        assert restored.digests() == state.digests()
        assert restored.freshness.counted() == state.freshness.counted()
        assert restored.freshness.tainted == state.freshness.tainted


@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_a_bundler_that_starts_again_from_its_bundle_goes_on_as_if_it_had_never_stopped(
    seed: int,
) -> None:
    """It is restarted with every upgrade; a delta that misses what came between would lose
    opt-outs.
    """
    history, store, unbroken = History(seed), memory(), memory()
    history.step()
    newest = published(store, history.log.state, KEY)
    published(unbroken, history.log.state, KEY)
    history.log.state = restore(opened(store), history.log.catalog)
    history.step()
    can_delta = not why_no_delta(newest, history.log.state)
    published(store, history.log.state, KEY, sequence=2, parent=newest if can_delta else None)
    published(unbroken, history.log.state, KEY, sequence=2)
    assert rows(opened(store)) == rows(opened(unbroken))


def test_the_same_state_makes_the_same_files() -> None:
    """Two bundlers, or one that is asked again, are told apart by what they hold and by nothing
    else.
    """
    one, other = (published(memory(), populated().state, KEY) for _ in range(2))
    assert one.files == other.files


def test_members_stand_in_the_order_in_which_a_trainer_keeps_them(
    log: Log, store: BundleStore
) -> None:
    """Else every trainer that starts sorts all of them."""
    manifest = write_bundle(
        store, log.state, key=KEY, namespace="consentry", sequence=1, created_at=NOW, file_rows=3
    )
    publish(store, manifest, key=KEY)

    members = [
        member.encode()
        for batch in opened(store).record_batches()
        for member in batch.column("member_id").to_pylist()
    ]

    assert len(members) > 3
    assert members == in_hash_order(members[::-1])


def test_many_files_say_what_one_says(log: Log) -> None:
    """Ten million members do not stand in one file."""
    one, many = memory(), memory()
    published(one, log.state, KEY)
    manifest = write_bundle(
        many, log.state, key=KEY, namespace="consentry", sequence=1, created_at=NOW, file_rows=3
    )
    publish(many, manifest, key=KEY)
    assert len(manifest.with_role("records")) == 3
    assert rows(opened(one)) == rows(opened(many))


def test_a_delta_has_a_row_for_nobody_who_did_not_change(log: Log, store: BundleStore) -> None:
    """A delta every minute must not cost what a snapshot costs."""
    first = published(store, log.state, KEY)
    log.member("m:quiet", random_event_of("m:quiet"))
    second = published(store, log.state, KEY, sequence=2, parent=first)
    third = published(store, log.state, KEY, sequence=3, parent=second)
    assert [
        sum(file.rows for file in one.with_role("records")) for one in (first, second, third)
    ] == [8, 1, 0]


def random_event_of(member: str) -> MemberEvent:
    """An opt-out of a member."""
    from tests.strategies import chose

    from consentry.domain.values import Choice

    return chose(Choice.OPT_OUT, 77, on=9, member=member)


class Watched(BundleStore):
    """A store in which somebody looks after every write."""

    def __init__(self, url: str, look: Callable[[], None]) -> None:
        super().__init__(url)
        self.look = look
        self.written: list[str] = []

    def write(self, *names: str, content: bytes) -> None:
        """See BundleStore."""
        super().write(*names, content=content)
        self.written.append(names[-1])
        self.look()


def test_a_reader_sees_the_previous_bundle_until_the_new_one_is_whole(log: Log) -> None:
    """There is no rename in an object store: the order of writes is all that protects a reader."""
    url = f"memory://{uuid.uuid4().hex}"
    published(BundleStore(url), log.state, KEY)
    seen: list[int] = []

    def look() -> None:
        bundle = opened(BundleStore(url))
        restore(bundle)
        seen.append(bundle.manifest.sequence)

    store = Watched(url, look)
    log.member("m:late", random_event_of("m:late"))
    published(store, log.state, KEY, sequence=2)
    assert seen == [1] * (len(seen) - 1) + [2]
    assert store.written[-3:] == ["manifest.json", "manifest.sig", "latest.jsonl"]


KILLED = """
import os, signal, sys
import pyarrow
sys.path[:0] = {paths!r}
from pathlib import Path
from tests.strategies import Choice, chose
from tests.unit.bundles.world import populated, published
from consentry.bundles import BundleStore, SigningKey
key = SigningKey.read({key!r})

log = populated()
pyarrow.array([1])  # loads what it loads on first use once, and not in every child

def attempt(place):
    store = BundleStore(Path({root!r}, str(place)))
    first = published(store, log.state, key)
    log.member("m:quiet", chose(Choice.OPT_OUT, 77, on=9, member="m:quiet"))
    calls = 0
    def counted(call):
        def counting(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == place + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return counting
    # Every step by which anything reaches the disk: making it last, and taking the name.
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    published(store, log.state, key, sequence=2, parent=first)

for place in range(200):
    child = os.fork()
    if child == 0:
        attempt(place)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(place)
        break
"""


def test_a_bundler_killed_at_any_step_leaves_the_previous_bundle_or_the_new_one_whole(
    tmp_path: Path,
) -> None:
    """kill -9, a power cut, a full disk: trainers start at any of these moments."""
    from consentry.bundles.keys import make_key_files

    private, public, _ = make_key_files(tmp_path / "key")
    paths = [path for path in sys.path if path]
    script = KILLED.format(paths=paths, key=str(private), root=str(tmp_path / "stores"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    places, keys = int(done.stdout), PublicKeys.read(public)
    assert places >= 15, (
        "each file is made to last and takes its name, and so are the manifest and the pointer"
    )
    found = []
    for place in range(places + 1):
        bundle = open_bundle(
            str(tmp_path / "stores" / str(place)), keys=keys, namespace="consentry", now=NOW
        )
        bundle.check_files()
        restore(bundle)
        found.append(bundle.manifest.sequence)
    # Behind the pointer's taking its name only its directory's entry is made to last.
    assert found[:-2] == [1] * (places - 1)
    assert found[-2:] == [2, 2]


def test_what_no_chain_needs_is_pruned_and_all_else_stays(log: Log, store: BundleStore) -> None:
    """A store that only grows is cleaned by hand, and by hand the wrong one is taken."""
    chain: list[Manifest] = []
    for number in range(1, 9):
        parent = None if number in (1, 4, 6) else chain[-1]
        chain.append(published(store, log.state, KEY, sequence=number, parent=parent))
    unfinished = "0000000005-snapshot-00000000000000aa"
    ahead = "0000000009-snapshot-00000000000000bb"
    for name in (unfinished, ahead):
        store.write(name, "records-00000.parquet", content=b"begun")
    gone = prune(store, newest=chain[-1], keep=2)
    assert gone == [one.bundle_id for one in chain[:3]]
    assert [int(one[:10]) for one in store.bundle_ids()] == [4, 5, 5, 6, 7, 8, 9]
    assert prune(store, newest=chain[-1], keep=1) == sorted(
        [chain[3].bundle_id, chain[4].bundle_id, unfinished]
    )
    assert restore(opened(store)).digests() == log.state.digests()
    assert ahead in store.bundle_ids()


def test_a_manifest_tells_whose_signature_was_checked(log: Log, store: BundleStore) -> None:
    """A certificate says by whose word its bundle was believed."""
    published(store, log.state, KEY)
    assert [one.signed_by for one in opened(store).manifests] == [KEY.key_id]


def test_the_pointer_names_the_manifest_by_its_hash(log: Log, store: BundleStore) -> None:
    """It makes the entity tag by which a poll every second costs nothing."""
    manifest = published(store, log.state, KEY)
    content = store.read(manifest.bundle_id, "manifest.json", bytes_max=1 << 20)
    assert (
        latest(store, KEYS).manifest_sha256
        == hashlib.sha256(content).hexdigest()
        == manifest.sha256
    )
    assert json.loads(content)["format"] == "consentry-bundle/1"


def test_a_record_that_goes_back_is_told_and_not_taken(log: Log) -> None:
    """Whoever heals the log needs both; whoever reads the bundle needs the newer one."""
    from tests.strategies import chose
    from tests.unit.bundles.world import record_bytes

    from consentry.domain.values import Choice

    events = [
        chose(Choice.OPT_IN, 50, on=1, member="m:x"),
        chose(Choice.OPT_OUT, 51, on=2, member="m:x"),
    ]
    older, newer = (record_bytes(log.catalog, "m:x", *events[:count]) for count in (1, 2))
    home = partition_of(b"m:x", PARTITIONS)
    told: list[Regression] = []
    log.state.apply_records(home, [b"m:x", b"m:x", b"m:x"], [newer, older, newer], told.append)
    assert [(one.member, one.newest, one.arrived) for one in told] == [(b"m:x", newer, older)]
    assert log.state.get(b"m:x") == newer
    assert b"m:x" not in log.state.damaged, "an older state of what is held takes nothing away"
    other = record_bytes(log.catalog, "m:x", chose(Choice.OPT_OUT, 52, on=1, member="m:x"))
    log.state.apply_records(home, [b"m:x"], [other], told.append)
    assert b"m:x" in log.state.damaged, "two histories of one member: one of them lost an event"
    assert len(told) == 2


def test_a_record_on_a_foreign_partition_holds_its_member(log: Log) -> None:
    """Its events have no order with the others of the member: which choice came last is not
    known.
    """
    raw = log.state.get(b"m:in")
    assert raw is not None
    log.raw("m:in", raw, partition=(partition_of(b"m:in", PARTITIONS) + 1) % PARTITIONS)
    assert b"m:in" in log.state.damaged


def test_batches_are_what_arrow_reads_at_once(log: Log, store: BundleStore) -> None:
    """A client loads ten million rows without one Python object each."""
    published(store, log.state, KEY)
    [batch] = opened(store).record_batches()
    assert batch.schema == pa.schema(
        [
            ("partition", pa.int32()),
            ("member_id", pa.string()),
            ("version", pa.int64()),
            ("record", pa.binary()),
            ("damaged", pa.bool_()),
        ]
    )
    assert Micros(opened(store).manifest.proven_at) == NOW
