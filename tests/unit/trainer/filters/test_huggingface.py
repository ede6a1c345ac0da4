"""Hugging Face: no cache outlives an opt-out, every order and format is honoured, and a stream
resumes where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.contract.filters.corpus import opt_out
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters import huggingface

MEMBERS = [f"m:{number}" for number in range(20)]
EVEN = list(range(0, 20, 2))


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and no progress bars in it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table_of(members: list[str] = MEMBERS) -> pa.Table:
    return pa.table({"member_id": members, "row": pa.array(range(len(members)), pa.int32())})


def on_disk(directory: Path, parts: int = 1) -> datasets.Dataset:
    """A data set of files, whose results are cached as files too."""
    for part in range(parts):
        pq.write_table(table_of(), directory / f"{part}.parquet")
    files = [str(directory / f"{part}.parquet") for part in range(parts)]
    return datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(directory / "cache")
    )


def streamed(directory: Path, parts: int = 1) -> datasets.IterableDataset:
    for part in range(parts):
        pq.write_table(table_of(), directory / f"{part}.parquet")
    files = [str(directory / f"{part}.parquet") for part in range(parts)]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


NAIVE = """
import os
def is_allowed(row):
    with open(os.environ["CONSENTRY_TEST_EXCLUDED"]) as lines:
        return row["member_id"] not in lines.read().split()
"""


class TestTheCache:
    """Of map-style data sets, which keep the result of each step as a file."""

    def test_the_library_alone_serves_members_who_opted_out_and_ours_does_not(
        self, decider: SnapshotDecider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The library's cache goes by the code of the function, which an opt-out does not
        change.
        """
        (tmp_path / "naive_filter.py").write_text(NAIVE)
        excluded = tmp_path / "excluded"
        excluded.write_text(" ".join(MEMBERS[1::2]))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("CONSENTRY_TEST_EXCLUDED", str(excluded))
        import naive_filter  # type: ignore[import-not-found]

        data = on_disk(tmp_path)
        naive, ours = (
            data.filter(naive_filter.is_allowed),
            huggingface.filter(decider, data, purpose=PURPOSE),
        )
        assert naive["row"][:] == ours["row"][:] == EVEN
        excluded.write_text(" ".join([*MEMBERS[1::2], "m:2"]))
        opt_out(decider.snapshot, "m:2")

        naive, ours = (
            data.filter(naive_filter.is_allowed),
            huggingface.filter(decider, data, purpose=PURPOSE),
        )
        assert 2 in naive["row"][:], (
            "the trap is gone: the library no longer serves the cached result"
        )
        assert ours["row"][:] == [row for row in EVEN if row != 2]

    def test_no_step_behind_it_is_served_from_before_an_opt_out(
        self, decider: SnapshotDecider, tmp_path: Path
    ) -> None:
        """Tokenised texts of someone who opted out since would be read from the cache."""
        data = on_disk(tmp_path)

        def tokenised() -> list[int]:
            mapped = huggingface.filter(decider, data, purpose=PURPOSE).map(
                lambda row: {"twice": row["row"] * 2}
            )
            found: list[int] = mapped["twice"][:]
            return found

        assert tokenised() == [2 * row for row in EVEN]
        opt_out(decider.snapshot, "m:4")
        assert tokenised() == [2 * row for row in EVEN if row != 4]

    def test_the_fingerprint_is_another_for_each_view_answer_purpose_and_column(
        self, decider: SnapshotDecider, tmp_path: Path
    ) -> None:
        """Whatever it left out would be a way for an old result to be found."""
        data = on_disk(tmp_path).add_column("author", MEMBERS)

        def fingerprint(purpose: str = PURPOSE, columns: Columns | None = None) -> str:
            found: str = huggingface.filter(
                decider, data, purpose=purpose, columns=columns
            )._fingerprint
            return found

        first = fingerprint()
        assert fingerprint() == first, (
            "the same answer of the same snapshot may be served from the cache"
        )
        found = {
            first,
            data._fingerprint,
            fingerprint(columns=Columns(member="author")),
            fingerprint("ads"),
        }
        decider.snapshot.positions["records", 0] = 99
        found.add(fingerprint())
        opt_out(decider.snapshot, "m:0")
        position = dict(decider.snapshot.positions)
        found.add(fingerprint())
        opt_out(decider.snapshot, "m:2")
        decider.snapshot.positions.clear()
        decider.snapshot.positions.update(position)
        found.add(fingerprint())
        assert len(found) == 7, "the answer alone, or the snapshot alone, has to be enough"

    def test_two_processes_that_share_a_cache_agree_on_who_opted_out(self, tmp_path: Path) -> None:
        """A job that is started again after an opt-out finds the files of its first run."""
        pq.write_table(table_of(), tmp_path / "posts.parquet")
        (tmp_path / "naive_filter.py").write_text(NAIVE)
        program = tmp_path / "job.py"
        program.write_text(JOB)
        for excluded in ("m:1", "m:1 m:2", "m:2"):
            done = subprocess.run(
                [sys.executable, str(program), str(tmp_path), excluded],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                cwd=Path(__file__).parents[4],
                env=os.environ | {"CONSENTRY_TEST_EXCLUDED": str(tmp_path / "excluded")},
            )
            assert done.returncode == 0, done.stderr
            ours, naive = (line.split() for line in done.stdout.splitlines())
            assert set(MEMBERS) - set(ours) == set(excluded.split())
            # In the first process the naive one is right; in all others it answers with what the
            # first one found.
            assert set(MEMBERS) - set(naive) == {"m:1"}


JOB = """
import sys
sys.path.insert(0, ".")
directory, excluded = sys.argv[1], sys.argv[2].split()
import datasets
from tests.contract.filters.corpus import opt_out
from tests.strategies import PURPOSE, day, policy, terms
from consentry.trainer.filters import huggingface
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.jurisdictions import iso_jurisdictions

snapshot = Snapshot(4, iso_jurisdictions())
snapshot.apply_control(policy(900, terms("*"), on=0))
opt_out(snapshot, *excluded)
datasets.disable_progress_bars()
data = datasets.load_dataset("parquet", data_files=directory + "/posts.parquet", split="train", cache_dir=directory)
data = data.map(lambda row: {"jurisdiction": "US"})
ours = huggingface.filter(SnapshotDecider(snapshot, at=day(100)), data, purpose=PURPOSE).map(lambda row: {"n": row["row"] + 1})
print(*ours["member_id"])

sys.path.insert(0, directory)
import naive_filter
with open(directory + "/excluded", "w") as lines:
    lines.write(" ".join(excluded))
print(*data.filter(naive_filter.is_allowed)["member_id"])
"""


class TestOrderAndFormat:
    """Of map-style data sets that were rearranged or formatted before."""

    @pytest.mark.parametrize(
        "step",
        [
            lambda data: data.select([9, 3, 0, 0, 12]),
            lambda data: data.select(range(4, 11)),
            lambda data: data.shuffle(seed=3),
            lambda data: data.shuffle(seed=3).select(range(5, 15)),
            lambda data: data.shard(num_shards=3, index=1, contiguous=False),
            lambda data: data.select(range(19, -1, -1)),
            lambda data: data.shuffle(seed=1).flatten_indices(),
            lambda data: datasets.concatenate_datasets([data.shuffle(seed=1), data.select([2, 1])]),
            lambda data: data.select([]),
            lambda data: data.select([1, 3]),
        ],
        ids=[
            "select",
            "slice",
            "shuffle",
            "slice-of-shuffle",
            "shard",
            "reversed",
            "flat",
            "joined",
            "none",
            "all-out",
        ],
    )
    def test_rows_are_decided_in_the_order_that_they_have_by_now(
        self, decider: SnapshotDecider, tmp_path: Path, step: Any
    ) -> None:
        """Decided as they lie in the file, the answers would be those of other members."""
        data, tally = step(on_disk(tmp_path)), Counter[Reason]()
        left = huggingface.filter(decider, data, purpose=PURPOSE, tally=tally)
        assert left["row"][:] == [row for row in data["row"][:] if row % 2 == 0]
        assert left.features == data.features
        assert tally.total() == len(data)

    def test_more_rows_than_are_decided_at_once_are_decided_in_parts(
        self, decider: SnapshotDecider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A data set of a billion rows does not have all its ids in memory."""
        monkeypatch.setattr(huggingface, "_CHUNK_ROWS", 7)
        data = datasets.Dataset(table_of())
        assert huggingface.filter(decider, data, purpose=PURPOSE)["row"][:] == EVEN
        mixed = data.shuffle(seed=1)
        left = huggingface.filter(decider, mixed, purpose=PURPOSE)["row"][:]
        assert left == [row for row in mixed["row"][:] if row % 2 == 0]

    @pytest.mark.parametrize("kind", ["numpy", "arrow", "pandas", "polars", "python"])
    def test_a_format_stays_and_does_not_hide_the_member(
        self, decider: SnapshotDecider, tmp_path: Path, kind: str
    ) -> None:
        """Tensors hold no texts, and many show only the columns that are trained on."""
        data = on_disk(tmp_path).with_format(kind, columns=["row"])
        left = huggingface.filter(decider, data, purpose=PURPOSE)
        assert left.format == data.format
        assert [
            int(row["row"].iloc[0] if kind == "pandas" else row["row"][0]) for row in left.iter(1)
        ] == EVEN
        assert left.with_format(None)["member_id"][:] == MEMBERS[::2]

    def test_a_transform_is_not_asked_who_a_row_is_of(self, decider: SnapshotDecider) -> None:
        """It is run on reading, and may make anything of the member."""
        data = datasets.Dataset(table_of()).with_transform(
            lambda batch: {"member_id": ["m:0"] * len(batch["row"])}
        )
        left = huggingface.filter(decider, data, purpose=PURPOSE)
        assert left.with_format(None)["row"][:] == EVEN

    def test_class_labels_are_decided_by_their_names(self, decider: SnapshotDecider) -> None:
        """A label is stored as a number, which is another member's id and nobody's jurisdiction."""
        members = datasets.ClassLabel(names=["m:1", "m:0"])
        places = datasets.ClassLabel(names=["US", "XX"])
        features = datasets.Features(
            {"member_id": members, "jurisdiction": places, "row": datasets.Value("int32")}
        )
        columns = {"member_id": [0, 1, 1, -1], "jurisdiction": [0, 0, 1, 0], "row": [0, 1, 2, 3]}
        data = datasets.Dataset.from_dict(columns, features=features)
        tally = Counter[Reason]()
        for form in (
            data,
            data.to_iterable_dataset(),
            data.to_iterable_dataset().with_format("arrow"),
        ):
            left = huggingface.filter(decider, form, purpose=PURPOSE, tally=tally)
            assert [
                int(row["row"] if isinstance(row, dict) else row["row"][0].as_py()) for row in left
            ] == [1]
        each = {
            Reason.OPTED_OUT: 3,
            Reason.DEFAULT_ON: 3,
            Reason.JURISDICTION_UNKNOWN: 3,
            Reason.QUARANTINED: 3,
        }
        assert tally == each

    def test_every_split_is_filtered_and_keeps_its_name(self, decider: SnapshotDecider) -> None:
        """The test split is looked at by people too."""
        data = datasets.Dataset(table_of())
        splits = datasets.DatasetDict(
            {"train": data.select(range(15)), "test": data.select(range(15, 20))}
        )
        left = huggingface.filter(decider, splits, purpose=PURPOSE)
        assert {name: split["row"][:] for name, split in left.items()} == {
            "train": EVEN[:8],
            "test": EVEN[8:],
        }


class TestStreams:
    """Of IterableDataset, whose rows are decided a batch at a time while they are read."""

    @pytest.fixture(autouse=True)
    def small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface, "_BATCH_ROWS", 4)

    @pytest.mark.parametrize("kind", [None, "numpy", "arrow", "polars"])
    def test_who_opts_out_meanwhile_is_left_out_from_the_next_batch_on(
        self, decider: SnapshotDecider, tmp_path: Path, kind: str | None
    ) -> None:
        """An epoch lasts for days; who opts out on the first need not be in the last batch."""
        data = streamed(tmp_path, parts=2)
        left = iter(
            huggingface.filter(decider, data.with_format(kind) if kind else data, purpose=PURPOSE)
        )
        member = (
            str(next(left)["member_id"][0])
            if kind in ("arrow", "polars")
            else str(next(left)["member_id"])
        )
        assert member == "m:0"
        opt_out(decider.snapshot, "m:0", "m:2", "m:4", "m:18")
        read = [row["member_id"] for row in left]
        members = [str(one[0] if kind in ("arrow", "polars") else one) for one in read]
        assert members == [
            *(f"m:{n}" for n in (2, 6, 8, 10, 12, 14, 16)),
            *(f"m:{n}" for n in (6, 8, 10, 12, 14, 16)),
        ]

    def test_types_and_features_stay(self, decider: SnapshotDecider, tmp_path: Path) -> None:
        """A stream of 32-bit numbers that becomes one of 64 bits no longer fits its model."""
        data = streamed(tmp_path)
        for kind in (None, "arrow", "numpy"):
            formed = data.with_format(kind) if kind else data
            left = huggingface.filter(decider, formed, purpose=PURPOSE)
            assert left.features == data.features
            first, same = next(iter(left)), next(iter(formed))
            assert type(first) is type(same)
            assert first == same if kind != "arrow" else first.equals(same)

    @pytest.mark.parametrize("kind", [None, "arrow"])
    @pytest.mark.parametrize("read", [1, 3, 4, 11])
    def test_a_stream_resumes_after_the_rows_that_were_read(
        self, decider: SnapshotDecider, tmp_path: Path, read: int, kind: str | None
    ) -> None:
        """A job that is killed in the night goes on in the morning with the next row."""
        data = streamed(tmp_path, parts=2)
        formed = data.with_format(kind) if kind else data

        def rows(stream: Any) -> Iterator[int]:
            return (row["row"][0].as_py() if kind else row["row"] for row in stream)

        first = huggingface.filter(decider, formed, purpose=PURPOSE)
        reading = rows(first)
        before = [next(reading) for _ in range(read)]
        state = first.state_dict()
        second = huggingface.filter(decider, formed, purpose=PURPOSE)
        second.load_state_dict(state)
        assert before + list(rows(second)) == EVEN * 2

    def test_a_resume_decides_anew_and_loses_nobody_else(
        self, decider: SnapshotDecider, tmp_path: Path
    ) -> None:
        """Who opted out in the night is not read in the morning, and nobody is skipped in their
        place.
        """
        data = streamed(tmp_path)
        first = huggingface.filter(decider, data, purpose=PURPOSE)
        reading = iter(first)
        assert [next(reading)["row"] for _ in range(3)] == [0, 2, 4]
        state = first.state_dict()
        opt_out(decider.snapshot, "m:4", "m:6", "m:12")
        second = huggingface.filter(decider, data, purpose=PURPOSE)
        second.load_state_dict(state)
        assert [row["row"] for row in second] == [8, 10, 14, 16, 18]

    def test_a_stream_of_odd_values_is_decided_value_by_value(
        self, decider: SnapshotDecider
    ) -> None:
        """A generator gives whatever it likes, and nobody knows its columns before."""
        members = ["m:0", None, 7, "m:1", b"m:0", "m:2"]
        data = datasets.IterableDataset.from_generator(
            lambda: ({"member_id": member} for member in members)
        )
        assert data.features is None
        tally = Counter[Reason]()
        left = huggingface.filter(decider, data, purpose=PURPOSE, tally=tally)
        assert [row["member_id"] for row in left] == ["m:0", "m:2"]
        assert tally == {Reason.DEFAULT_ON: 2, Reason.QUARANTINED: 3, Reason.OPTED_OUT: 1}

    def test_a_missing_column_is_told_at_once_or_with_the_first_batch(
        self, decider: SnapshotDecider, tmp_path: Path
    ) -> None:
        """Later it would be an hour of reading for nothing."""
        with pytest.raises(InvalidInput, match="it has 'row'"):
            huggingface.filter(
                decider, streamed(tmp_path).remove_columns("member_id"), purpose=PURPOSE
            )
        unknown = datasets.IterableDataset.from_generator(lambda: iter([{"author": "m:0"}]))
        with pytest.raises(InvalidInput, match="it has 'author'"):
            next(iter(huggingface.filter(decider, unknown, purpose=PURPOSE)))

    def test_shards_and_shuffles_stay_possible(
        self, decider: SnapshotDecider, tmp_path: Path
    ) -> None:
        """Each rank reads its own files."""
        left = huggingface.filter(decider, streamed(tmp_path, parts=4), purpose=PURPOSE)
        assert left.num_shards == 4
        assert [row["row"] for row in left.shard(num_shards=4, index=1)] == EVEN
        assert sorted(row["row"] for row in left.shuffle(seed=1, buffer_size=5)) == sorted(EVEN * 4)
