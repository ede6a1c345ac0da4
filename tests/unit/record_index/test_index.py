"""The records of a follower: what is found is what a dict would hold, for one key, for many, and
for integers.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentry.domain.errors import InvalidInput
from consentry.record_index import (
    IndexRegression,
    IntegerKeys,
    Keys,
    RecordIndex,
    Segment,
    SegmentWriter,
    TextKeys,
    in_hash_order,
)
from consentry.record_index import index as store
from consentry.record_index import segment_writer as writing
from consentry.record_index.keys import INTEGERS_BELOW, hash_of, mix, numbers_of_views

LETTERS = "abzABZ0123456789:_-"
MEMBERS = st.one_of(
    st.integers(0, INTEGERS_BELOW * 10).map(str),
    st.sampled_from(
        ["0", "00", "7", "07", "-7", "12345678", "123456789012345678", "1234567890123456789"]
    ),
    st.text(LETTERS, min_size=1, max_size=64),
).map(str.encode)
"""Decimals of all lengths, such as look like decimals, and others."""


def record(version: int, rest: bytes = b"") -> bytes:
    return b"\0\0\0\0\1" + version.to_bytes(8, "big") + rest


def found(held: RecordIndex, keys: Keys) -> list[bytes | None]:
    """What the columns find, as a dict would say it."""
    answers: list[bytes | None] = [None] * len(keys)
    for segment, rows, places in held.find(keys):
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            assert answers[row] is None, "found twice"
            answers[row] = segment.record(place)
    return answers


@given(st.lists(MEMBERS, max_size=40))
def test_one_key_and_a_column_of_keys_have_the_same_hashes(keys: list[bytes]) -> None:
    """A member whom only one of the two finds would be excluded by `decide` and not by a filter."""
    column = TextKeys.of(keys)

    assert column.hashes(decimals=True).tolist() == [hash_of(key) for key in keys]
    assert column.to_list() == keys


@given(st.lists(MEMBERS, max_size=40))
def test_the_integer_of_a_text_is_the_one_that_it_is_the_plain_decimal_form_of(
    keys: list[bytes],
) -> None:
    """'007' and '7' are two members: who takes one for the other opts out the wrong one."""
    values, is_decimal = TextKeys.of(keys).decimals()

    for key, value, is_one in zip(keys, values.tolist(), is_decimal.tolist(), strict=True):
        text = key.decode()
        assert is_one == (text.isdigit() and str(int(text)) == text and int(text) < INTEGERS_BELOW)
        assert not is_one or value == int(text)


@given(
    st.lists(st.lists(st.tuples(MEMBERS, st.integers(0, 3)), max_size=30), max_size=6),
    st.integers(0, 40),
    st.lists(MEMBERS, max_size=20),
)
def test_it_holds_what_a_dict_would_whatever_the_sizes(
    batches: list[list[tuple[bytes, int]]], recent_max: int, others: list[bytes]
) -> None:
    """Every answer rests on it."""
    held, expected, told = RecordIndex(), dict[bytes, bytes](), list[IndexRegression]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "RECENT_MAX", recent_max)
        patched.setattr(store, "_BATCH_ROWS_MIN", 5)
        for batch in batches:
            values = [record(version, key) for key, version in batch]
            told += held.apply([key for key, _ in batch], values)
            for (key, version), value in zip(batch, values, strict=True):
                if key not in expected or expected[key][5:13] <= version.to_bytes(8, "big"):
                    expected[key] = value

    asked = [*expected, *others]
    answers = [expected.get(key) for key in asked]
    assert found(held, TextKeys.of(asked)) == answers == [held.get(key) for key in asked]
    numbers = [
        int(key)
        for key in asked
        if key.isdigit() and str(int(key)).encode() == key and int(key) < 10**18
    ]
    by_number = [expected.get(b"%d" % number) for number in numbers]
    assert found(held, IntegerKeys(np.array(numbers, dtype=np.uint64))) == by_number
    assert dict(held.pairs()) == expected == dict(held)
    assert len(list(held.pairs())) == len(held) == len(expected)
    assert all(one.newest[5:13] > one.older[5:13] for one in told)


def test_an_older_version_is_told_and_not_taken() -> None:
    """A worker that was frozen may publish an opt-in again that was taken back since."""
    held = RecordIndex()
    held.apply([b"a"], [record(2)])

    assert held.apply([b"a", b"b"], [record(1), record(1)]) == [
        IndexRegression(b"a", record(2), record(1))
    ]
    assert dict(held) == {b"a": record(2), b"b": record(1)}


@given(st.lists(MEMBERS, unique=True, max_size=50))
def test_a_segment_is_the_same_after_it_was_a_file(
    tmp_path_factory: pytest.TempPathFactory, keys: list[bytes]
) -> None:
    """Other processes read what one has written."""
    path = tmp_path_factory.mktemp("segment") / "records"
    segment = Segment.of(keys, [record(1, key) for key in keys])

    segment.save(path)
    opened = Segment.open(path)

    assert dict(opened.items()) == {key: record(1, key) for key in keys}
    assert [opened.position_of(key) for key in keys] == [segment.position_of(key) for key in keys]
    assert list(path.parent.iterdir()) == [path]


def test_it_can_be_sent_to_another_process() -> None:
    """Ray and the loaders of PyTorch send what they are given."""
    held = RecordIndex([Segment.of([b"a", b"12"], [record(1), record(2)])])
    held.apply([b"b"], [record(3)])

    again = pickle.loads(pickle.dumps(held))  # noqa: S301 - our own bytes

    assert dict(again) == dict(held)
    assert found(again, TextKeys.of([b"b", b"12"])) == [record(3), record(2)]


@pytest.mark.parametrize("keep", [0, 7, 8, 15, 40, 100, 300])
def test_a_file_that_ends_too_early_is_refused(tmp_path: Path, keep: int) -> None:
    """Half of the records would be half of the opt-outs."""
    path = tmp_path / "records"
    Segment.of([b"a", b"b"], [record(1), record(2)]).save(path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(InvalidInput) as caught:
        Segment.open(path)
    assert caught.value.code == "records.file"


def test_a_member_who_is_named_twice_is_refused() -> None:
    """One of the two records may be the opt-out."""
    with pytest.raises(InvalidInput) as caught:
        Segment.of([b"a", b"b", b"a"], [record(1), record(1), record(2)])
    assert caught.value.code == "records.twice"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_columns_of_every_width_and_slices_of_them_are_read(kind: pa.DataType) -> None:
    """What a reader hands over is often a slice, with a null in it."""
    texts = ["ab", None, "c" * 64, "0", "längst", "d e", "", "f" * 65, "g" * 9]
    values = [None if text is None else text.encode() for text in texts]
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    column = pa.array(values if binary else texts, kind)

    for start in range(len(texts)):
        keys = TextKeys.of_arrow(column.slice(start))
        assert keys.to_list() == [value or b"" for value in values[start:]]
        assert keys.valid().tolist() == [
            text in ("ab", "c" * 64, "0", "g" * 9) for text in texts[start:]
        ]


def test_members_whose_hashes_begin_alike_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever chooses ids can have them so; a member who is not found is nobody, and allowed by
    default.
    """
    hashes = TextKeys.hashes
    monkeypatch.setattr(
        TextKeys,
        "hashes",
        lambda keys, *, decimals: hashes(keys, decimals=decimals) >> np.uint64(26),
    )
    keys = [b"m-%d" % number for number in range(66_000)]

    segment = Segment.of(keys, [b""] * len(keys))
    asked = TextKeys.of(keys[::40])

    assert (segment.find(asked, asked.hashes(decimals=True)) >= 0).all()


def test_large_merges_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Following would stand still, and every answer would be STALE."""
    monkeypatch.setattr(store, "RECENT_MAX", 10)
    monkeypatch.setattr(store, "MERGED_MAX", 50)
    held = RecordIndex([Segment.of([b"m%d" % n for n in range(100)], [record(1)] * 100)])

    for start in range(0, 400, 20):
        keys = [b"m%d" % n for n in range(start, start + 20)]
        held.apply(keys, [record(2)] * 20)

    sizes = [len(segment) for segment in held.segments()]
    assert sizes[-1] == 100
    assert 20 < max(sizes[:-1]) <= 50
    assert len(held) == 400


@given(
    st.one_of(
        st.lists(st.text(max_size=4).filter(lambda text: len(text.encode()) < 8), max_size=30),
        st.lists(st.text("abc\0", min_size=2, max_size=2), max_size=30),
    )
)
def test_short_texts_have_numbers_of_their_own(texts: list[str]) -> None:
    """Two codes of jurisdictions that looked alike would make one country's pause another's."""
    numbers = TextKeys.of([text.encode() for text in texts]).short_numbers()
    of_views = numbers_of_views(pa.array(["before", *texts], pa.string_view()).slice(1))

    assert of_views is not None
    assert numbers is not None
    assert of_views.tolist() == numbers.tolist()

    assert numbers is not None
    assert len(set(numbers.tolist())) == len(set(texts))
    assert 0 not in numbers
    assert TextKeys.of([b"a", b"12345678"]).short_numbers() is None


def twins(first: bytes, other: bytes) -> tuple[bytes, bytes]:
    """Two texts of 16 bytes that begin so and have one hash: whoever chooses ids can have them."""
    states = [
        int(mix(np.array([16], np.uint64), np.array([int.from_bytes(one, "little")], np.uint64))[0])
        for one in (first, other)
    ]
    word = (states[0] ^ states[1] ^ int.from_bytes(b"12345678", "little")).to_bytes(8, "little")
    return first + b"12345678", other + word


def test_keys_in_the_order_of_their_hashes_are_the_same_whatever_order_they_came_in() -> None:
    """Bundles of the same state are the same files, byte by byte."""
    pair = twins(b"m:abcdef", b"m:ghijkl")
    keys = [
        *(b"m:%d" % number for number in range(500)),
        *(b"%d" % number for number in range(500)),
        *pair,
    ]

    ordered = in_hash_order(keys)

    assert hash_of(pair[0]) == hash_of(pair[1])
    assert ordered == in_hash_order(keys[::-1]) == sorted(keys, key=lambda key: (hash_of(key), key))
    assert in_hash_order([]) == []


def test_a_segment_of_members_in_the_order_of_their_hashes_sorts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sorting ten million members takes longer than all else that a trainer does before it is
    ready.
    """
    keys = in_hash_order([b"m:%d" % number for number in range(2000)])
    monkeypatch.setattr(np, "argsort", lambda *_: pytest.fail("it sorted"))

    segment = Segment.of(keys, [record(1)] * len(keys))

    assert segment.ids.to_pylist() == keys


@given(
    st.lists(MEMBERS, min_size=1, max_size=60, unique=True), st.integers(0, 60), st.integers(0, 60)
)
def test_members_are_counted_once_whatever_segments_they_are_in(
    keys: list[bytes], first: int, second: int
) -> None:
    """Segments of a bundle share no member, those of what changed may share all."""
    ordered = in_hash_order(keys)
    newer, older = ordered[first:], ordered[:second]

    held = RecordIndex([Segment.of(part, [record(1)] * len(part)) for part in (newer, older)])

    assert len(held) == len({*newer, *older}) == len(dict(held))


@pytest.mark.parametrize("is_ordered", [True, False])
@given(st.lists(MEMBERS, max_size=60, unique=True), st.integers(1, 20))
def test_a_segment_of_members_who_come_by_and_by_is_that_of_all_at_once(
    tmp_path_factory: pytest.TempPathFactory, is_ordered: bool, keys: list[bytes], size: int
) -> None:
    """Bundles have them in the order of their hashes; an older one does not, and nobody may get
    another's record.
    """
    keys = in_hash_order(keys)[:: 1 if is_ordered else -1]
    values = [record(1, key) for key in keys]
    batch = pa.record_batch(
        [pa.array(keys, pa.binary()), pa.array(values, pa.binary())], ["ids", "records"]
    )
    with (tmp_path_factory.mktemp("writer") / "segment").open("w+b") as file:
        writer = SegmentWriter(file)
        for start in range(0, len(keys), size):
            part = batch.slice(start, size)  # whose bytes do not begin at the first
            assert writer.add(part["ids"], part["records"])
        segment = writer.finish()

    whole = Segment.of(keys, values)
    assert segment.ids.to_pylist() == whole.ids.to_pylist()
    assert dict(segment.items()) == dict(zip(keys, values, strict=True))
    held = RecordIndex([segment])
    assert found(held, TextKeys.of(keys)) == values
    assert [held.get(key) for key in keys] == values


def test_a_segment_that_is_full_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets of 32 bits that ran over would give one member the record of another."""
    monkeypatch.setattr(writing, "BYTES_MAX", 100)
    with (tmp_path / "segment").open("w+b") as file:
        writer = SegmentWriter(file)
        assert writer.add(pa.array([b"a"]), pa.array([record(1, b"x" * 200)])), (
            "nobody else could take it"
        )
        assert not writer.add(pa.array([b"b"]), pa.array([record(1)]))
        assert dict(writer.finish().items()) == {b"a": record(1, b"x" * 200)}
    with (tmp_path / "other").open("w+b") as file:
        writer = SegmentWriter(file)
        assert writer.add(pa.array([b"a" * 60]), pa.array([record(1)]))
        assert not writer.add(pa.array([b"b" * 60]), pa.array([record(1)]))


def test_a_member_who_comes_twice_is_refused(tmp_path: Path) -> None:
    """One of the two records may be the opt-out."""
    with (tmp_path / "segment").open("w+b") as file:
        writer = SegmentWriter(file)
        writer.add(pa.array([b"a"]), pa.array([record(1)]))
        writer.add(pa.array([b"a"]), pa.array([record(2)]))
        with pytest.raises(InvalidInput) as caught:
            writer.finish()
    assert caught.value.code == "records.twice"


def integer_of_hash(hashed: int) -> int:
    """The integer that has this hash: whoever chooses ids can have any that they like."""

    def before(found: int) -> int:
        unshifted = found
        for _ in range(3):
            unshifted = found ^ (unshifted >> 29)
        return unshifted * pow(0x9E3779B97F4A7C15, -1, 1 << 64) & ((1 << 64) - 1)

    return before(before(hashed)) ^ ((1 << 64) - 1)


def test_an_id_that_would_stand_behind_the_last_member_is_not_there() -> None:
    """One member with a chosen id would else end every filter that asks for them."""
    members = [b"m%d" % number for number in range(1000)]
    segment = Segment.of(members, [record(1)] * 1000)
    bits, last = 10, hash_of(segment.ids[-1].as_py())
    assert last >> (64 - bits) < (1 << bits) - 1, "the last bucket is empty"
    alike = ((1 << bits) - 1) << (64 - bits) | (last >> (64 - bits - 32) & 0xFFFFFFFF) << (
        64 - bits - 32
    )
    number = next(
        one
        for one in (integer_of_hash(alike | low) for low in range(1 << 20))
        if one < INTEGERS_BELOW
    )
    assert hash_of(b"%d" % number) >> 22 == alike >> 22

    for keys in (TextKeys.of([b"%d" % number]), IntegerKeys(np.array([number], np.uint64))):
        assert segment.find(keys, keys.hashes(decimals=True)).tolist() == [-1]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"members": 2},
        {"members": "3"},
        {"steps": "int8"},
        {"steps": "uint16"},
        {"digest": "0" * 64},
        {"buffers": []},
        {"buffers": [[1024, -1]] * 7},
        {"buffers": [[-1, 1]] * 7},
        {"buffers": [[0.5, 1]] * 7},
        {"buffers": None},
    ],
)
def test_a_file_whose_head_was_altered_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """What is mapped is believed: a wrong length is another member's record, or the end of the
    process.
    """
    path = tmp_path / "segment"
    Segment.of([b"a", b"b", b"c"], [record(1)] * 3).save(path)
    content = path.read_bytes()
    head = json.loads(content[8:1024]) | change
    path.write_bytes(content[:8] + json.dumps(head).encode().ljust(1016) + content[1024:])

    with pytest.raises(InvalidInput) as caught:
        Segment.open(path)
    assert caught.value.code == "records.file"
