"""The filter for PyTorch: data sets, loaders and batches hand out only rows that may be used.

A stream is numbered as it comes, before anything is left out. By these numbers it is split among
ranks and workers and taken up again: so what one rank or worker leaves out moves no row of another,
and no row comes twice or never.

Where freshness is not proven, reading raises Unavailable (`trainer.stale`): an epoch that just
ended there would be taken for a whole one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, groupby, islice
from time import monotonic
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    default_collate,
    get_worker_info,
)

from consentry.domain.errors import ConsentryError, InvalidInput, Refused
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.filters.portable import portable
from consentry.trainer.filters.torch_batches import BatchQuestion, filter_batch
from consentry.wire.schemas import CONTROLS, RECORDS

BLOCK_ROWS: Final = 256
"""Examples that are decided at once."""
RECHECK_SECONDS: Final = 0.5
"""A decision that is older is made again before its example is handed out."""


def filter(
    decider: Decider,
    data: Any,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Any:
    """Return the part of a PyTorch data set, or of a loader's batches, that may be used.

    An IterableDataset becomes a ConsentDataset, any other Dataset a Subset as of now, for which
    every example is read once. For anything else that gives batches see `filter_batches`. Raises
    InvalidInput where a column is missing, Unavailable (`trainer.stale`) where freshness is not
    proven.
    """
    question = BatchQuestion(
        decider, purpose, columns, at_least, Counter() if tally is None else tally
    )
    if isinstance(data, IterableDataset):
        return ConsentDataset(
            decider, data, purpose=purpose, columns=columns, at_least=at_least, tally=tally
        )
    if isinstance(data, Dataset):
        return Subset(data, list(_allowed_indices(question, data)))
    return filter_batches(
        decider, data, purpose=purpose, columns=columns, at_least=at_least, tally=tally
    )


def filter_batches(
    decider: Decider,
    batches: Iterable[Any],
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
) -> Iterator[Any]:
    """Yield the batches of a PyTorch loader without the rows that may not be used.

    Each batch is decided here, when it is handed out. A batch is a dict of tensors and lists, one
    entry a row, with the member ids among them, or an Arrow table. Rows are taken out of every
    field; a batch without allowed rows is left out. Raises as `filter`, and InvalidInput where rows
    cannot be taken out of a field.
    """
    question = BatchQuestion(
        decider, purpose, columns, at_least, Counter() if tally is None else tally
    )
    for number, batch in enumerate(batches):
        mask = question.mask(question.keys_of_batch(batch))
        allowed = filter_batch(batch, mask, is_first=number == 0)
        if allowed is not None:
            yield allowed


class ConsentDataset(IterableDataset[Any]):
    """A PyTorch data set: a stream's examples that may be used, decided while it is read.

    `source` gives dicts, one an example, or Arrow tables or batches, and the same ones in the same
    order each time; with `__len__` and `__getitem__` it is read by index. Every process reads its
    own share: example number n of the stream belongs to rank n % ranks, and there to one worker.
    `ranks` and `rank` are those of torch.distributed where it is initialised. With `source_shards`
    the source splits itself among workers and ranks, and each of its examples is taken.

    In worker processes the decider's portable form is asked. Its decision is at most
    RECHECK_SECONDS old when an example is handed to the loader, which keeps some in store;
    ConsentLoader decides again when a batch leaves it. `tally` counts in the process that reads.
    """

    def __init__(
        self,
        decider: Decider,
        source: Iterable[Any],
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
        tally: Counter[Reason] | None = None,
        rank: int | None = None,
        ranks: int | None = None,
        source_shards: bool = False,
        block: int = BLOCK_ROWS,
    ) -> None:
        self.source: Final = source
        self.purpose: Final = purpose
        self.columns: Final = columns
        self.at_least: Final = at_least
        self.tally: Final[Counter[Reason]] = Counter() if tally is None else tally
        own_rank, all_ranks = _own_rank()
        self.rank: Final = own_rank if rank is None else rank
        self.ranks: Final = all_ranks if ranks is None else ranks
        self.source_shards: Final = source_shards
        self._block = block
        self._decider: Decider | None = decider
        self._process = os.getpid()
        self._portable, self._why_not_portable = _try_portable(decider)
        self._positions: dict[int, int] = {}
        self._resume: _Resume | None = None
        if not 0 <= self.rank < self.ranks:
            raise InvalidInput(
                f"There is no rank {self.rank} among {self.ranks}.",
                code="input.rank",
                fix="count ranks from 0",
            )

    @property
    def decider(self) -> Decider:
        """The decider of this process for the data set. Raises Refused if it has none."""
        if self._decider is not None and self._process == os.getpid():
            return self._decider
        return self._portable_decider()

    def _portable_decider(self) -> Decider:
        if self._portable is None and self._decider is not None and self._process == os.getpid():
            # It may have been shared since.
            self._portable, self._why_not_portable = _try_portable(self._decider)
        if self._portable is None:
            assert self._why_not_portable is not None
            raise self._why_not_portable
        return self._portable

    def __getstate__(self) -> dict[str, Any]:
        self._portable_decider()
        return self.__dict__ | {"_decider": None}

    def __iter__(self) -> Iterator[Any]:
        resume, self._resume = self._resume, None
        if resume is not None and resume.process != os.getpid():
            raise InvalidInput(
                "The state was loaded in one process and the data set is read in another: each "
                "epoch would skip.",
                code="input.state",
                fix="load the state into a ConsentLoader, which knows how far its workers are",
            )
        shard, shards = self.share()
        self._positions = {} if resume is None else resume.checked(shards)
        for allowed in self.read(shard, shards, self._positions.get(shard, 0), self.tally):
            self._positions[shard] = allowed.position
            if allowed.example is not None:
                yield allowed.example
        self._positions = {}  # the next examples are of the next epoch

    def state_dict(self) -> dict[str, Any]:
        """Return this process's positions in the data set, and the snapshot; fit for JSON."""
        return _state(self, self._positions, self.share()[1])

    def load_state_dict(
        self, state: Mapping[str, Any], *, allow_older_snapshot: bool = False
    ) -> None:
        """Begin the data set's next epoch where the state was taken.

        Under a newer snapshot more may be left out. Raises Refused where the decider knows less
        than when the state was taken, unless `allow_older_snapshot`, and InvalidInput for the state
        of another purpose.
        """
        self._resume = _resume(self, state, allow_older_snapshot=allow_older_snapshot)

    def share(self, turn: int = 0) -> tuple[int, int]:
        """Return the number of this process's share of the data set, and of all shares.

        `turn` is the number of the worker that the first worker stands for.
        """
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self.rank + self.ranks * ((number + turn) % workers), self.ranks * workers

    def read(
        self, shard: int, shards: int, start: int, tally: Counter[Reason]
    ) -> Iterator[AllowedExample]:
        """Yield the allowed examples of one share of the data set from a position on.

        The last one has no example, and the position where the share ends.
        """
        question = BatchQuestion(self.decider, self.purpose, self.columns, self.at_least, tally)
        numbered = self._numbered(shard, shards, start)
        position = start
        while block := list(islice(numbered, self._block)):
            yield from _decide_block(question, block)
            position = block[-1][0] + 1
        yield AllowedExample(position, None, 0, None)

    def _numbered(self, shard: int, shards: int, start: int) -> Iterator[tuple[int, Any]]:
        source: Any = self.source
        if self.source_shards:
            return islice(zip(count(), source, strict=False), start, None)
        if get_worker_info() is not None and type(source).__module__.startswith(
            "datasets.iterable_dataset"
        ):
            raise InvalidInput(
                "A streaming data set of Hugging Face splits itself among workers: only a part of "
                "it would be read.",
                code="input.source",
                fix="say source_shards=True, and split it by node for ranks; or read it without "
                "workers",
            )
        first = start + (shard - start) % shards
        # Every torch data set has __getitem__, also one that can only be read through.
        if (
            not isinstance(source, IterableDataset)
            and hasattr(source, "__getitem__")
            and hasattr(source, "__len__")
        ):
            return ((number, source[number]) for number in range(first, len(source), shards))
        return islice(zip(count(), source, strict=False), first, None, shards)


class ConsentLoader:
    """A PyTorch loader of a ConsentDataset's batches, decided once more when they leave it.

    `options` are those of torch's DataLoader, without those that choose examples. `batch_size` None
    hands out each element by itself. `collate_fn` is run by the workers; each field of its result
    has one entry a row. The loader has a state, which says how much has been handed out, not how
    much workers have read ahead. Raises as `filter` and `filter_batches`.
    """

    def __init__(
        self,
        dataset: ConsentDataset,
        *,
        batch_size: int | None = 1,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        drop_last: bool = False,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        self.dataset: Final = dataset
        self._batch_size = batch_size
        self._collate = collate_fn
        self._drop_last = drop_last
        self._options = {**options, "num_workers": num_workers}
        self._shards = dataset.ranks * max(1, num_workers)
        self._positions: dict[int, int] = {}
        self._turn = 0
        self._resume: _Resume | None = None
        if num_workers:
            # A data set that cannot be given to workers is refused here, and not in each of them.
            dataset.__getstate__()
        if not options.get("in_order", True):
            raise InvalidInput(
                "Batches out of order cannot be resumed in theirs.",
                code="input.in_order",
                fix="leave in_order out",
            )

    def __iter__(self) -> Iterator[Any]:
        resume, self._resume = self._resume, None
        self._positions = {} if resume is None else resume.checked(self._shards)
        # A source that splits itself knows its workers by their numbers: these are not changed
        # then.
        self._turn = 0 if resume is None or self.dataset.source_shards else resume.turn
        batches = _Batches(
            self.dataset,
            self._positions,
            self._turn,
            self._batch_size,
            self._collate,
            drop_last=self._drop_last,
        )
        dataset, is_first = self.dataset, True
        question = BatchQuestion(
            dataset.decider, dataset.purpose, dataset.columns, dataset.at_least, dataset.tally
        )
        for handed in DataLoader(batches, batch_size=None, collate_fn=_unchanged, **self._options):
            if handed.error is not None:
                kind, message, code, fix = handed.error
                raise kind(message, code=code, fix=fix)
            dataset.tally.update(
                {Reason(reason): number for reason, number in handed.excluded.items()}
            )
            self._positions[handed.shard] = handed.position
            self._turn = (handed.shard // dataset.ranks + 1) % (self._shards // dataset.ranks)
            if handed.keys is not None:
                mask = question.mask(handed.keys)
                if handed.is_example:
                    allowed = handed.batch if mask.all() else None
                else:
                    allowed = filter_batch(handed.batch, mask, is_first=is_first)
                    is_first = False
                if allowed is not None:
                    yield allowed
        self._positions, self._turn = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's positions of batches handed out, and the snapshot.

        It is fit for JSON.
        """
        return _state(self.dataset, self._positions, self._shards, self._turn)

    def load_state_dict(
        self, state: Mapping[str, Any], *, allow_older_snapshot: bool = False
    ) -> None:
        """Begin the loader's next epoch where the state was taken; see ConsentDataset.

        Raises InvalidInput also for another number of ranks and workers.
        """
        resume = _resume(self.dataset, state, allow_older_snapshot=allow_older_snapshot)
        resume.checked(self._shards)
        self._resume = resume


# ---- what passes between workers and the loader


class AllowedExample(NamedTuple):
    """An allowed example of a filtered PyTorch stream, and the position behind it.

    With it comes its row in the keys it was decided by. `row` is -1 where the example is an Arrow
    table.
    """

    position: int
    keys: pa.Table | None
    row: int
    example: Any


class _Handed(NamedTuple):
    """A message from a worker to the loader: a batch, the end of its share, or an error.

    `is_example` is True where the batch is one example as it is, out of which no rows can be taken.
    """

    shard: int
    position: int
    excluded: dict[str, int]
    keys: pa.Table | None = None
    batch: Any = None
    is_example: bool = False
    error: tuple[type[ConsentryError], str, str, str] | None = None


class _Batches(IterableDataset[_Handed]):
    """The batches of a ConsentDataset, each with the position behind it."""

    def __init__(
        self,
        dataset: ConsentDataset,
        positions: Mapping[int, int],
        turn: int,
        batch_size: int | None,
        collate: Callable[[list[Any]], Any],
        *,
        drop_last: bool,
    ) -> None:
        self._dataset = dataset
        self._positions = dict(positions)
        self._turn = turn
        self._batch_size = batch_size
        self._collate = collate
        self._drop_last = drop_last

    def __iter__(self) -> Iterator[_Handed]:
        shard, shards = self._dataset.share(self._turn)
        start = self._positions.get(shard, 0)
        try:
            yield from self._batches(shard, shards, start)
        except ConsentryError as error:
            # torch would make another error of it, without a code.
            parts = (type(error), error.message, error.code, error.fix)
            yield _Handed(shard, start, {}, error=parts)

    def _batches(self, shard: int, shards: int, start: int) -> Iterator[_Handed]:
        tally: Counter[Reason] = Counter()
        batch: list[AllowedExample] = []
        for allowed in self._dataset.read(shard, shards, start, tally):
            if allowed.example is not None:
                batch.append(allowed)
                if len(batch) == (self._batch_size or 1):
                    yield self._handed(shard, allowed.position, batch, tally)
                    batch = []
            elif batch and not self._drop_last:
                yield self._handed(shard, allowed.position, batch, tally)
            elif allowed.position > start:
                yield _Handed(shard, allowed.position, _take_excluded(tally))

    def _handed(
        self, shard: int, position: int, batch: list[AllowedExample], tally: Counter[Reason]
    ) -> _Handed:
        first = batch[0]
        if self._batch_size is None and first.row < 0:
            return _Handed(shard, position, _take_excluded(tally), first.keys, first.example)
        if first.row < 0:
            raise InvalidInput(
                "Arrow tables are batches already and cannot be gathered into others.",
                code="input.batch_size",
                fix="say batch_size=None",
            )
        excluded = _take_excluded(tally)
        keys = _keys_of(batch)
        examples = [allowed.example for allowed in batch]
        if self._batch_size is None:
            return _Handed(shard, position, excluded, keys, examples[0], is_example=True)
        return _Handed(shard, position, excluded, keys, self._collate(examples))


def _keys_of(batch: list[AllowedExample]) -> pa.Table:
    """Return the keys of a batch's examples, in order; neighbours often share one table of keys."""
    tables: list[pa.Table] = []
    for _, group in groupby(batch, key=lambda allowed: id(allowed.keys)):
        members = list(group)
        keys = members[0].keys
        if keys is not None:
            tables.append(keys.take([allowed.row for allowed in members]))
    return pa.concat_tables(tables, promote_options="permissive")


def _take_excluded(tally: Counter[Reason]) -> dict[str, int]:
    """Return the excluded rows by reason, and begin to count anew.

    Allowed rows are counted when they leave the loader.
    """
    excluded = {reason.value: number for reason, number in tally.items() if not reason.allows}
    tally.clear()
    return excluded


def _unchanged(value: Any) -> Any:
    return value


# ---- deciding


def _decide_block(
    question: BatchQuestion, block: list[tuple[int, Any]]
) -> Iterator[AllowedExample]:
    """Yield the allowed ones of some examples.

    Those that are left are decided again whenever handing out has taken RECHECK_SECONDS.
    """
    if isinstance(block[0][1], pa.Table | pa.RecordBatch):
        for number, table in block:
            keys = question.keys_of_table(table)
            mask = question.mask(keys)
            if mask.any():
                yield AllowedExample(
                    number + 1, keys.filter(pa.array(mask)), -1, table.filter(pa.array(mask))
                )
        return
    keys = question.keys_of_examples([example for _, example in block])
    start = 0
    while start < len(block):
        decisions, asked_at = Decisions(question.reasons(keys.slice(start))), monotonic()
        mask = decisions.mask.tolist()
        for row in range(start, len(block)):
            if monotonic() - asked_at > RECHECK_SECONDS:
                start = row
                break
            question.tally[REASONS[decisions.reasons[row - start]]] += 1
            if mask[row - start]:
                yield AllowedExample(block[row][0] + 1, keys, row, block[row][1])
        else:
            return


def _allowed_indices(question: BatchQuestion, data: Any) -> Iterator[int]:
    """Yield the indices of a data set's examples that may be used."""
    for start in range(0, len(data), BLOCK_ROWS):
        indices = range(start, min(start + BLOCK_ROWS, len(data)))
        mask = question.mask(question.keys_of_examples([data[index] for index in indices]))
        yield from (start + np.flatnonzero(mask)).tolist()


# ---- ranks and state


def _own_rank() -> tuple[int, int]:
    """Return this process's rank, and the number of ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _try_portable(decider: Decider) -> tuple[Decider | None, Refused | None]:
    """Return the portable form, or why there is none: it matters only for other processes."""
    try:
        return portable(decider), None
    except Refused as error:
        return None, error


class _Resume(NamedTuple):
    """A state that was loaded, and the process that loaded it."""

    positions: dict[int, int]
    shards: int
    turn: int
    process: int

    def checked(self, shards: int) -> dict[int, int]:
        """Return the positions by share.

        Raises InvalidInput where the stream is split in another way now.
        """
        if self.shards != shards:
            raise InvalidInput(
                f"The state is of {self.shards} shares of the stream, and now there are {shards}.",
                code="input.state",
                fix="resume with as many ranks and workers as the state was taken with",
            )
        return dict(self.positions)


def _state(
    dataset: ConsentDataset, positions: Mapping[int, int], shards: int, turn: int = 0
) -> dict[str, Any]:
    decider = dataset.decider
    return {
        "purpose": dataset.purpose,
        "snapshot": decider.snapshot_id,
        "known": _known(decider),
        "shards": shards,
        "turn": turn,
        "positions": {str(shard): position for shard, position in positions.items()},
    }


def _known(decider: Decider) -> dict[str, int]:
    """Return the positions up to which the decider has read each topic; empty where unknown."""
    positions = getattr(getattr(decider, "snapshot", decider), "positions", {})
    return {
        f"{topic}-{partition}": position
        for (topic, partition), position in sorted(dict(positions).items())
        if topic in (RECORDS, CONTROLS)
    }


def _resume(
    dataset: ConsentDataset, state: Mapping[str, Any], *, allow_older_snapshot: bool
) -> _Resume:
    if state["purpose"] != dataset.purpose:
        raise InvalidInput(
            f"The state is of the purpose {state['purpose']!r}, the data set of "
            f"{dataset.purpose!r}.",
            code="input.state",
            fix="resume what the state was taken of",
        )
    decider = dataset.decider
    now = _known(decider)
    behind = [name for name, position in state["known"].items() if now.get(name, 0) < position]
    if behind and not allow_older_snapshot:
        name = behind[0]
        raise Refused(
            f"The snapshot knows less than when the state was taken: {name} is at "
            f"{now.get(name, 0)}, then it was at {state['known'][name]}.",
            code="trainer.view_went_back",
            fix="resume under the same or a newer snapshot; or say allow_older_snapshot=True, and "
            "why somewhere",
        )
    positions = {int(shard): int(position) for shard, position in state["positions"].items()}
    return _Resume(positions, int(state["shards"]), int(state["turn"]), os.getpid())
