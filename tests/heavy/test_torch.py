"""PyTorch: the same rows as everywhere, whoever reads them; none twice, none lost, and none after
an opt-out.
"""

from __future__ import annotations

import json
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.contract.filters import corpus
from tests.contract.filters.corpus import Corpus
from tests.contract.filters.member_ids import (
    NAMED,
    NOBODY,
    decider_of_all_opted_out,
    reasons_of,
)
from tests.heavy.deciders import Sent
from tests.stack import PURPOSE, World, allowed, lives_in, opted_out, wait_for
from tests.strategies import policy, terms
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.domain.values import Reason
from consentry.trainer.client import Client
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.filters import torch_
from consentry.trainer.filters.torch_ import ConsentDataset, ConsentLoader, filter_batches
from consentry.trainer.filters.torch_batches import BatchQuestion, take_rows
from consentry.wire.jurisdictions import iso_jurisdictions

BOUND_SECONDS = 10.0  # a busy machine may need seconds to start a worker process
ROW_COLUMNS = ("row", "member_id", "jurisdiction", "category", "collected_at")
WORKERS = [(0, None), (2, "fork"), (2, "spawn")]


def loader_of(dataset: ConsentDataset, workers: int = 0, start: str | None = None) -> ConsentLoader:
    """A loader of batches as dicts."""
    return ConsentLoader(
        dataset,
        batch_size=32,
        collate_fn=columns_of,
        num_workers=workers,
        multiprocessing_context=start,
    )


class Stream(IterableDataset[Any]):
    """Examples that can only be read through."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


class Examples(IterableDataset[Any]):
    """The rows of tables, one by one."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return (row for batch in self.batches for row in batch.to_pylist())


class Indexed(Dataset[Any]):
    """Examples by index."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> Any:
        return self.examples[place]


@pytest.fixture(scope="module")
def small() -> Corpus:
    """The small corpus."""
    return corpus.small()


def rows_of(batches: Any) -> list[int]:
    """The rows in the order in which they come."""
    return [row for batch in batches for row in list_of(batch)]


def list_of(batch: Any) -> list[int]:
    """The rows of a batch."""
    found: list[int] = (
        batch["row"].tolist() if isinstance(batch["row"], torch.Tensor) else list(batch["row"])
    )
    return found


def columns_of(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: numbers as a tensor, the rest as lists."""
    batch: dict[str, Any] = {name: [example[name] for example in examples] for name in examples[0]}
    return batch | {"row": torch.tensor(batch["row"])}


@pytest.mark.parametrize("ids", ["text", "integers"])
@pytest.mark.parametrize("form", ["stream", "indexed", "tables", "subset", "batches"])
def test_every_form_keeps_the_rows_that_the_rules_allow(ids: Any, form: str) -> None:
    """Whoever trains with torch trains on the same people as everybody else, however the data
    come.
    """
    given = corpus.small(ids)
    examples = given.table.to_pylist()
    tally: Counter[Reason] = Counter()
    asked: dict[str, Any] = {"purpose": given.purpose, "tally": tally}

    if form == "stream":
        found = [one["row"] for one in torch_.filter(given.decider, Stream(examples), **asked)]
    elif form == "indexed":
        found = [one["row"] for one in ConsentDataset(given.decider, examples, **asked)]
    elif form == "tables":
        tables = torch_.filter(given.decider, Stream(given.table.to_batches()), **asked)
        found = [row for table in tables for row in table["row"].to_pylist()]
    elif form == "subset":
        subset = torch_.filter(given.decider, Indexed(examples), **asked)
        assert isinstance(subset, Subset)
        found = [subset[place]["row"] for place in range(len(subset))]
    else:
        loader = DataLoader(Indexed(examples), batch_size=64, collate_fn=columns_of)
        found = rows_of(torch_.filter(given.decider, loader, **asked))

    assert found == given.kept_rows
    assert tally == given.reasons


def test_a_million_rows_are_the_very_rows_of_the_other_filters() -> None:
    """What no small table shows: many blocks, and as many examples one by one."""
    given = corpus.big()
    batches = given.table.select(list(ROW_COLUMNS)).to_batches(max_chunksize=100_000)
    tally, tally_of_examples = Counter[Reason](), Counter[Reason]()

    tables = torch_.filter(given.decider, Stream(batches), purpose=given.purpose, tally=tally)
    examples = torch_.filter(
        given.decider, Examples(batches), purpose=given.purpose, tally=tally_of_examples
    )

    assert [row for table in tables for row in table["row"].to_pylist()] == given.kept_rows
    assert [one["row"] for one in examples] == given.kept_rows
    assert tally == tally_of_examples == given.reasons


@pytest.mark.parametrize(
    ("ranks", "workers", "start"), [(1, 0, None), (3, 2, "fork"), (1, 2, "spawn")]
)
def test_workers_and_ranks_read_every_allowed_row_once(
    small: Corpus, ranks: int, workers: int, start: str
) -> None:
    """A row read by two workers counts double in the model, and one read by none is lost."""
    examples, found, tally = small.table.to_pylist(), [], Counter[Reason]()
    for rank in range(ranks):
        dataset = ConsentDataset(
            Sent(), Stream(examples), purpose=small.purpose, tally=tally, rank=rank, ranks=ranks
        )
        found += rows_of(loader_of(dataset, workers, start))

    assert sorted(found) == small.kept_rows
    assert tally == small.reasons


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize(("workers", "start"), [(0, None), (3, "fork")])
@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_resumed_epoch_goes_on_in_the_very_order(
    small: Corpus, workers: int, start: str, after: int
) -> None:
    """A run that was resumed and one that never stopped see the same batches, or neither can be
    repeated.
    """
    examples = small.table.to_pylist()
    for rank in (0, 1):
        asked: dict[str, Any] = {"purpose": small.purpose, "rank": rank, "ranks": 2}
        whole = [
            list_of(batch)
            for batch in loader_of(ConsentDataset(small.decider, examples, **asked), workers, start)
        ]
        assert len(whole) > after
        first = loader_of(ConsentDataset(small.decider, examples, **asked), workers, start)
        begun = [list_of(batch) for batch in islice(first, after)]
        state = json.loads(json.dumps(first.state_dict()))

        second = loader_of(ConsentDataset(small.decider, examples, **asked), workers, start)
        second.load_state_dict(state)

        assert begun + [list_of(batch) for batch in second] == whole
        assert state["snapshot"] == small.decider.snapshot_id
        assert [list_of(batch) for batch in second] == whole, "the next epoch is a whole one"


@pytest.mark.parametrize(("workers", "start"), WORKERS)
def test_single_examples_come_as_they_are_and_resume(
    small: Corpus, workers: int, start: str
) -> None:
    """Without a batch size there are no rows to take out: an example is handed out whole or not at
    all.
    """
    examples = small.table.to_pylist()

    def loader() -> ConsentLoader:
        dataset = ConsentDataset(small.decider, Stream(examples), purpose=small.purpose)
        return ConsentLoader(
            dataset, batch_size=None, num_workers=workers, multiprocessing_context=start
        )

    whole = [one["row"] for one in loader()]
    assert sorted(whole) == small.kept_rows
    first = loader()
    begun = [one["row"] for one in islice(first, 40)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert begun + [one["row"] for one in second] == whole


def test_a_data_set_by_itself_resumes_where_it_was(small: Corpus) -> None:
    """Loaders that keep state, such as torchdata's, ask the data set itself."""
    examples = small.table.to_pylist()
    first = ConsentDataset(small.decider, Stream(examples), purpose=small.purpose)
    begun = [one["row"] for one in islice(first, 77)]
    second = ConsentDataset(small.decider, Stream(examples), purpose=small.purpose)
    second.load_state_dict(first.state_dict())

    assert begun + [one["row"] for one in second] == small.kept_rows
    assert [one["row"] for one in second] == small.kept_rows


def test_the_end_of_an_epoch_is_the_beginning_of_the_next(small: Corpus) -> None:
    """A state that was taken between two epochs must not give an empty one."""
    loader = loader_of(
        ConsentDataset(small.decider, small.table.to_pylist(), purpose=small.purpose)
    )
    rows_of(loader)
    again = loader_of(ConsentDataset(small.decider, small.table.to_pylist(), purpose=small.purpose))
    again.load_state_dict(loader.state_dict())

    assert rows_of(again) == small.kept_rows


def test_a_state_loaded_here_is_not_read_by_each_worker_in_each_epoch(small: Corpus) -> None:
    """torch's own loader would skip what was read before in every epoch to come."""
    dataset = ConsentDataset(small.decider, Stream(small.table.to_pylist()), purpose=small.purpose)
    dataset.load_state_dict(dataset.state_dict())

    with pytest.raises(Exception, match=r"input\.state"):
        list(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"))


def test_who_opted_out_before_the_resume_is_left_out_and_nobody_else(small: Corpus) -> None:
    """A run is resumed days later: who said no meanwhile was told that it counts at once."""
    given = corpus.small()
    examples, leaving = given.table.to_pylist(), corpus.allowed_member(given)
    first = loader_of(ConsentDataset(given.decider, examples, purpose=given.purpose))
    begun = rows_of(islice(first, 5))
    state = first.state_dict()

    corpus.opt_out(given.snapshot, leaving)
    second = loader_of(ConsentDataset(given.decider, examples, purpose=given.purpose))
    second.load_state_dict(state)

    rest = [row for row in small.kept_rows if row not in begun]
    assert rows_of(second) == [row for row in rest if examples[row]["member_id"] != leaving]


def test_no_resume_under_a_view_that_went_back(small: Corpus) -> None:
    """An older snapshot has forgotten opt-outs that were heeded before."""
    newer = corpus.small()
    corpus.opt_out(newer.snapshot, corpus.allowed_member(newer))
    state = ConsentDataset(newer.decider, [], purpose=newer.purpose).state_dict()
    dataset = ConsentDataset(small.decider, small.table.to_pylist(), purpose=small.purpose)

    with pytest.raises(Refused) as refused:
        dataset.load_state_dict(state)
    assert refused.value.code == "trainer.view_went_back"
    dataset.load_state_dict(state, allow_older_snapshot=True)
    with pytest.raises(InvalidInput, match="purpose"):
        ConsentDataset(newer.decider, [], purpose="ads").load_state_dict(state)
    with pytest.raises(InvalidInput, match="shares"):
        loader_of(
            ConsentDataset(newer.decider, [], purpose=newer.purpose), 2, "fork"
        ).load_state_dict(state)


@pytest.mark.parametrize("form", ["dataset", "loader", "batches"])
def test_who_opts_out_while_an_epoch_runs_is_in_no_later_batch(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided ahead, and waits to be handed out, is as old as the wait is long."""
    monkeypatch.setattr(torch_, "RECHECK_SECONDS", 0.02)
    given = corpus.small()
    examples, leaving = given.table.to_pylist(), corpus.allowed_member(given)
    dataset = ConsentDataset(given.decider, examples, purpose=given.purpose, block=10_000)
    plain = DataLoader(Indexed(examples), batch_size=32, collate_fn=columns_of)
    batches: Any = {
        "dataset": ({"row": [one["row"]]} for one in dataset),
        "loader": iter(loader_of(dataset)),
        "batches": filter_batches(given.decider, plain, purpose=given.purpose),
    }[form]

    found = list(islice(batches, 3))
    corpus.opt_out(given.snapshot, leaving)
    time.sleep(0.05)
    told = rows_of(found)
    found += list(batches)

    expected = [
        row for row in given.kept_rows if row in told or examples[row]["member_id"] != leaving
    ]
    assert rows_of(found) == expected
    assert len(expected) < len(given.kept_rows)


@pytest.mark.parametrize(("workers", "start"), WORKERS)
def test_an_epoch_that_cannot_be_decided_on_fails_and_does_not_just_end(
    workers: int, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch that ends early looks like a whole one: nobody would ever know that most of it was
    not read.
    """
    monkeypatch.setattr(torch_, "RECHECK_SECONDS", 0.02)
    until = tmp_path / "until"
    given = corpus.small()
    dataset = ConsentDataset(Sent("text", until), given.table.to_pylist(), purpose=given.purpose)
    batches = iter(loader_of(dataset, workers, start))
    next(batches)

    until.touch()
    time.sleep(0.05)
    with pytest.raises(Unavailable) as stopped:
        next(batches)

    assert stopped.value.code == "trainer.stale"
    with pytest.raises(Unavailable):
        torch_.filter(Sent("text", until), Indexed(given.table.to_pylist()), purpose=given.purpose)


def test_workers_say_stale_with_a_code_of_their_own(tmp_path: Path, small: Corpus) -> None:
    """The main process may still be fresh: then the workers' word counts, and is told as what it
    is.
    """

    class Apart(Sent):
        def portable(self) -> Sent:
            return Sent("text", tmp_path)  # is there

    dataset = ConsentDataset(Apart(), small.table.to_pylist(), purpose=small.purpose)
    with pytest.raises(Unavailable) as stopped:
        list(loader_of(dataset, 1, "fork"))
    assert stopped.value.code == "trainer.stale"


def test_a_client_is_refused_in_workers(small: Corpus) -> None:
    """librdkafka does not survive a fork: a client there would answer for ever by what it knew."""
    client = object.__new__(Client)
    client.name, client._sharing = "unshared", None
    dataset = ConsentDataset(client, Stream(small.table.to_pylist()), purpose=small.purpose)

    for workers, start in WORKERS[1:]:
        with pytest.raises(Refused) as refused:
            loader_of(dataset, workers, start)
        assert refused.value.code == "trainer.not_portable"
    with pytest.raises(Exception, match=r"trainer\.not_portable"):
        list(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(Refused):
        pickle.dumps(dataset)


def test_ids_of_any_type_are_read_row_by_row() -> None:
    """Were one row's type to decide about another's, the place of a block's end would decide who is
    trained on.
    """
    given = corpus.small("integers")
    member = int(corpus.allowed_member(given))
    ids = [
        member,
        str(member),
        torch.tensor(member),
        np.int64(member),
        None,
        True,
        float(member),
        b"x",
        [member],
        "é",
    ]
    examples = [{"member_id": one, "row": row, "jurisdiction": "IN"} for row, one in enumerate(ids)]
    examples.append({"row": 99, "jurisdiction": "IN"})
    for block in (2, 3, 100):
        tally = Counter[Reason]()
        dataset = ConsentDataset(
            given.decider, examples, purpose=given.purpose, tally=tally, block=block
        )
        assert [one["row"] for one in dataset] == [0, 1, 2, 3]
        assert tally[Reason.QUARANTINED] == 7


def test_rows_leave_every_field_of_a_batch() -> None:
    """A text that stays when its member id has left is trained on all the same."""
    mask = np.array([True, False, True])
    batch = {
        "ids": torch.arange(6).reshape(3, 2),
        "text": ["a", "b", "c"],
        "pair": [torch.arange(3), torch.arange(3) * 2],
        "nested": {"array": np.arange(3), "tokens": [[1], [2, 3], [4]]},
    }

    left = take_rows(batch, mask)

    assert left["ids"].tolist() == [[0, 1], [4, 5]]
    assert left["text"] == ["a", "c"]
    assert [one.tolist() for one in left["pair"]] == [[0, 2], [0, 4]]
    assert left["nested"]["array"].tolist() == [0, 2]
    assert left["nested"]["tokens"] == [[1], [4]]
    for odd in (3, "abc", torch.tensor(1), torch.arange(4), ["a"], [torch.arange(3)] * 3):
        with pytest.raises(InvalidInput, match="Rows cannot be taken"):
            take_rows({"odd": odd}, mask)


def test_what_cannot_be_filtered_is_told_at_the_first_batch(small: Corpus) -> None:
    """Not hours later, when the first of its members opts out."""
    asked: dict[str, Any] = {"purpose": small.purpose}
    allowed = corpus.allowed_member(small)
    ok = {"member_id": [allowed], "jurisdiction": ["IN"]}
    for batch, told in (
        ({"member": ["a"]}, "has no column 'member_id'; it has 'member'"),
        ([1, 2], "A batch is a list"),
        (ok | {"epoch": 3}, "Rows cannot be taken"),
        (ok | {"jurisdiction": ["IN", "IN"]}, "not equally long"),
    ):
        with pytest.raises(InvalidInput, match=told):
            list(filter_batches(small.decider, [batch], **asked))
    with pytest.raises(InvalidInput, match="An example is a tuple"):
        list(ConsentDataset(small.decider, [(1, 2)], **asked))
    with pytest.raises(InvalidInput, match="has no column 'member_id'; it has 'who'"):
        list(ConsentDataset(small.decider, [{"who": "m"}], **asked))
    with pytest.raises(InvalidInput, match="no rank 2"):
        ConsentDataset(small.decider, [], rank=2, ranks=2, **asked)


def test_a_source_that_splits_itself_is_not_split_again(small: Corpus) -> None:
    """A part of a part is a quarter: nobody would notice the rest that is never read."""
    import datasets

    stream = datasets.Dataset(small.table).to_iterable_dataset(num_shards=2)
    split = ConsentDataset(small.decider, stream, purpose=small.purpose, source_shards=True)
    assert sorted(rows_of(loader_of(split, 2, "fork"))) == small.kept_rows

    with pytest.raises(InvalidInput, match="splits itself"):
        list(loader_of(ConsentDataset(small.decider, stream, purpose=small.purpose), 2, "fork"))


class Endless(IterableDataset[Any]):
    """The same members again and again: an epoch that lasts as long as the test."""

    def __iter__(self) -> Iterator[Any]:
        return ({"member_id": f"c:{number % 10}", "row": number} for number in count())


@pytest.mark.stack
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_an_opt_out_and_a_lost_broker_reach_the_workers_of_a_running_epoch(
    world: World, tmp_path: Path, start: str
) -> None:
    """The epoch takes days: who opts out on its first is not trained on until its last."""
    world.processor().wait_ready()
    world.open_policy()
    world.produce(*(lives_in(f"c:{number}") for number in range(10)))
    client = world.client(staleness_seconds=BOUND_SECONDS)
    wait_for(lambda: client.is_fresh and allowed(client, "c:9"), "the client is ready")
    client.share(tmp_path / "shared")
    dataset = ConsentDataset(client, Endless(), purpose=PURPOSE)
    # Decided by workers alone, and once more when a batch is handed out.
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": start}
    plain = iter(DataLoader(dataset, batch_size=16, collate_fn=columns_of, **options))
    loader = iter(ConsentLoader(dataset, batch_size=16, collate_fn=columns_of, **options))
    assert {member for batch in islice(plain, 40) for member in batch["member_id"]} == {
        f"c:{n}" for n in range(10)
    }
    next(loader)

    world.produce(opted_out("c:3"))
    until = time.monotonic() + BOUND_SECONDS
    while time.monotonic() < until:
        next(plain)
        next(loader)
    for batches in (plain, loader):
        late = {member for batch in islice(batches, 60) for member in batch["member_id"]}
        assert late == {f"c:{number}" for number in range(10)} - {"c:3"}

    world.stack.stop_service("kafka")
    until = time.monotonic() + 2 * BOUND_SECONDS + 5
    with pytest.raises(Unavailable) as stopped:  # noqa: PT012 - it may go on as long as the bound says
        while time.monotonic() < until:
            next(loader)
    assert stopped.value.code == "trainer.stale"
    with pytest.raises(Exception, match=r"trainer\.stale"):  # noqa: PT012 - it may go on as long as the bound says
        while time.monotonic() < until + 5:
            next(plain)


def test_a_member_id_is_what_it_is_to_every_other_reader() -> None:
    """An opt-out that one library finds and another one misses is no opt-out."""
    snapshot = Snapshot(4, iso_jurisdictions())
    snapshot.apply_control(policy(900, terms("*"), on=0))
    decider = decider_of_all_opted_out(snapshot)
    question = BatchQuestion(decider, PURPOSE, None, None, Counter())
    for value, _ in NAMED:
        keys = question.keys({"member_id": [value]})
        assert reasons_of(decider, keys) == [Reason.OPTED_OUT], repr(value)
    for value in NOBODY:
        for beside in (1000, "m:2"):
            keys = question.keys({"member_id": [beside, value]})
            assert reasons_of(decider, keys)[1] is Reason.QUARANTINED, repr(value)
