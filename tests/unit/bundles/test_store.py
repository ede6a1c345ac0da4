"""The places where bundles lie: a directory and a store without renames keep the same promises."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from consentry.bundles import BundleStore
from consentry.bundles.store import NotThere
from consentry.domain.errors import Unavailable

BUNDLE = "0000000001-snapshot-0123456789abcdef"
OTHER = "0000000002-delta-0123456789abcdef"


@pytest.fixture(params=["directory", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> BundleStore:
    """Each of the stores."""
    if request.param == "memory":
        return BundleStore(f"memory://{uuid.uuid4().hex}/bundles")
    return BundleStore(tmp_path / "some" / "bundles")


def test_what_was_written_is_read_up_to_the_bound_and_one_more(place: BundleStore) -> None:
    """The one more tells that there is more; the bound keeps a reader's memory."""
    place.write(BUNDLE, "file", content=b"0123456789")
    assert place.read(BUNDLE, "file", bytes_max=100) == b"0123456789"
    assert place.read(BUNDLE, "file", bytes_max=10) == b"0123456789"
    assert place.read(BUNDLE, "file", bytes_max=9) == b"0123456789"
    assert place.read(BUNDLE, "file", bytes_max=4) == b"01234"


def test_what_is_written_again_is_read_anew(place: BundleStore) -> None:
    """The pointer is: a reader that sees the one of before misses every opt-out since."""
    place.write("latest.jsonl", content=b"first")
    assert place.bundle_ids() == []
    place.write("latest.jsonl", content=b"the second one")
    assert place.read("latest.jsonl", bytes_max=100) == b"the second one"


def test_what_is_not_there_is_told_apart_from_a_store_that_does_not_answer(
    place: BundleStore,
) -> None:
    """One of them is a refusal, the other worth another try."""
    with pytest.raises(NotThere):
        place.read(BUNDLE, "file", bytes_max=1)
    assert place.bundle_ids() == []
    place.remove(BUNDLE)


def test_bundles_are_listed_in_order_and_nothing_else_is(place: BundleStore) -> None:
    """What somebody else put into the bucket is neither pruned nor counted."""
    for name in (OTHER, BUNDLE, "notes"):
        place.write(name, "file", content=b"x")
    place.write("latest.jsonl", content=b"x")
    assert place.bundle_ids() == [BUNDLE, OTHER]
    place.remove(BUNDLE)
    assert place.bundle_ids() == [OTHER]
    assert place.read("notes", "file", bytes_max=9) == b"x"


def test_a_directory_that_may_not_be_read_does_not_answer(tmp_path: Path) -> None:
    """No permission is not no bundle: a job must not take it for an empty store."""
    store = BundleStore(tmp_path)
    store.write(BUNDLE, "file", content=b"x")
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / BUNDLE).chmod(0)
    try:
        with pytest.raises(Unavailable, match=r"bundle\.store_unavailable"):
            store.read(BUNDLE, "file", bytes_max=9)
    finally:
        (tmp_path / BUNDLE).chmod(0o755)


def test_a_store_does_not_show_its_url() -> None:
    """URLs hold credentials now and then, and objects end in logs."""
    assert "secret" not in repr(BundleStore("memory://user:secret@bucket/x"))
