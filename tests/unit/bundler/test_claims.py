"""Who may write the next bundle: no number twice, none below another, and nobody is waited for
without end.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from consentry.bundler.claims import CLAIM_SECONDS, FOLDER, KEPT, SequenceClaims
from consentry.domain.errors import Unavailable
from consentry.domain.values import Micros

START = 1_750_000_000_000_000
Named = Callable[[str], SequenceClaims]


class Time:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> Micros:
        return Micros(self.now)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "bundles") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def by(url: str, time: Time) -> Named:
    return lambda writer: SequenceClaims(url, writer=writer, clock=time)


def test_numbers_go_up_and_say_who_holds_them(by: Named) -> None:
    """A number below another would make an older bundle the newest."""
    claims = by("a")

    assert [claims.take(1), claims.take(2), claims.take(9), claims.take(3)] == [1, 2, 9, 10]
    highest = claims.highest()
    assert highest is not None
    assert (highest.sequence, highest.writer, highest.claimed_at) == (10, "a", START)


def test_of_many_at_once_each_number_goes_to_one(by: Named) -> None:
    """Two bundlers with one number would both go on from the same bundle."""

    def take(number: int) -> list[int]:
        claims = by(f"w{number}")
        found = [claims.take(1) for _ in range(5)]
        return [one for one in found if one is not None]

    with ThreadPoolExecutor(8) as pool:
        taken = [one for found in pool.map(take, range(8)) for one in found]

    assert taken
    assert len(taken) == len(set(taken))


def test_nobody_gets_a_number_while_somebody_else_writes(by: Named, time: Time) -> None:
    """The slower of the two would be published last, with less in it."""
    assert by("a").take(1) == 1
    assert by("b").take(1) is None
    time.now += int(CLAIM_SECONDS * 1e6)

    assert by("b").take(1) == 2, "it fell silent"
    assert by("a").take(1) is None, "and is a stranger now"


def test_after_the_number_was_published_another_may_take_the_next(by: Named) -> None:
    """A claim that outlives its bundle would hold up whoever takes over."""
    by("a").take(1)

    assert by("b").take(2) == 2


def test_the_same_bundler_started_anew_does_not_wait_for_itself(by: Named) -> None:
    """A restart would cost five minutes of bundles."""
    by("a").take(1)

    assert by("a").take(1) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"writer": "x"}', b"\xff"])
def test_a_claim_that_cannot_be_read_holds_nobody_up(url: str, by: Named, content: bytes) -> None:
    """A torn file of a killed bundler would stop bundles for ever."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{root}/{FOLDER}", exist_ok=True)
    fs.pipe_file(f"{root}/{FOLDER}/0000000004.json", content)
    fs.pipe_file(f"{root}/{FOLDER}/.0000000009.json.ab", b"left by a kill")

    assert by("b").take(2) == 5


def test_old_claims_are_forgotten_and_the_highest_never(by: Named, url: str) -> None:
    """A store of a year would hold half a million of them; without the highest a number would be
    given twice.
    """
    claims = by("a")
    for number in range(1, KEPT + 10):
        claims.take(number)

    fs, root = fsspec.core.url_to_fs(url)
    assert len(fs.ls(f"{root}/{FOLDER}", detail=False)) <= KEPT + 1
    assert claims.take(1) == KEPT + 10


def test_a_store_that_does_not_answer_is_told_without_its_url(tmp_path: Path) -> None:
    """A URL may hold a password, and errors are logged."""
    (tmp_path / "secret").write_text("a file where a directory was to be")
    claims = SequenceClaims(str(tmp_path / "secret"), writer="a", clock=Time())

    with pytest.raises(Unavailable) as caught:
        claims.take(1)

    assert "secret" not in str(caught.value)
