"""A bundler's first steps: its keys, its name, and the bundle that it goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.bundler.test_service import CATALOG, KEYS, START, Service, Topics

from consentry.bundler.service import STALL_SECONDS
from consentry.bundler.setup import (
    liveness,
    read_keys,
    require_store,
    restore_newest,
    writer_name,
)
from consentry.bundles import BundleRefused, BundleState, BundleStore, Manifest
from consentry.domain.errors import Refused
from consentry.domain.values import Micros


def restore(store: BundleStore) -> tuple[BundleState | None, Manifest | None]:
    """Restore the newest bundle, as of the tests' start."""
    return restore_newest(store, KEYS, "consentry", CATALOG, lambda: Micros(START))


class TestKeys:
    def test_a_bundler_without_a_signing_key_does_not_start(self) -> None:
        """Nobody would believe its bundles."""
        with pytest.raises(Refused) as refusal:
            read_keys(None, [], make_key=True)

        assert refusal.value.code == "bundle.no_key"

    def test_the_first_start_makes_the_key_and_later_ones_keep_it(self, tmp_path: Path) -> None:
        """A new key at each start would be one that no reader knows."""
        file = tmp_path / "bundler.key"

        first, _ = read_keys(file, [], make_key=True)
        second, _ = read_keys(file, [], make_key=True)

        assert first.key_id == second.key_id

    def test_a_missing_key_is_not_made_unasked(self, tmp_path: Path) -> None:
        """A path with a slip of the finger would change the key."""
        file = tmp_path / "bundler.key"

        with pytest.raises(Refused):
            read_keys(file, [], make_key=False)

        assert not file.exists()


def test_a_bundler_without_a_store_does_not_start() -> None:
    """It would follow for an hour, and write nowhere."""
    with pytest.raises(Refused) as refusal:
        require_store("")

    assert refusal.value.code == "bundle.no_store"
    assert require_store("s3://bucket/bundles") == "s3://bucket/bundles"


def test_a_bundler_is_named_by_its_worker_id_or_by_its_process() -> None:
    """With the same name a bundler that was killed takes its own claim up again."""
    assert writer_name("bundler-1") == "bundler-1"
    assert writer_name("") != writer_name("")


class TestRestoring:
    def test_an_empty_store_restores_nothing(self, tmp_path: Path) -> None:
        """The first bundler begins at the beginning."""
        assert restore(BundleStore(str(tmp_path))) == (None, None)

    def test_the_newest_bundle_is_gone_on_from(self, tmp_path: Path) -> None:
        """Reading all records anew at each start would take an hour."""
        store, topics = BundleStore(str(tmp_path)), Topics()
        topics.choose("anna")
        Service(topics, store).turn()

        state, newest = restore(store)

        assert state is not None
        assert newest is not None
        assert newest.sequence == 1
        assert state.get(b"anna") is not None

    def test_a_damaged_bundle_ends_the_bundler(self, tmp_path: Path) -> None:
        """To write over it would hide what happened, and lose whoever only it quarantines."""
        store, topics = BundleStore(str(tmp_path)), Topics()
        topics.choose("anna")
        Service(topics, store).turn()
        for file in tmp_path.rglob("*.parquet"):
            file.unlink()

        with pytest.raises(BundleRefused):
            restore(store)


@pytest.mark.parametrize(
    ("idle_seconds", "repairs", "is_alive"),
    [(1.0, True, True), (STALL_SECONDS, True, False), (1.0, False, False)],
)
def test_a_bundler_that_stands_still_or_repairs_nothing_is_not_alive(
    idle_seconds: float, repairs: bool, is_alive: bool
) -> None:
    """Its bundles grow old, and trainers that begin from them are stale."""
    assert liveness(idle_seconds=idle_seconds, repairs=repairs)["ok"] is is_alive
