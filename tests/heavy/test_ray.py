"""Ray Data: the same rows as everywhere, decided in Ray's workers by what they know when they
read.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from tests.contract.filters import corpus
from tests.contract.filters.corpus import Corpus
from tests.heavy.deciders import Sent

from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import Reason
from consentry.trainer.client import Client
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.filters import ray_

# Ray warns of settings that it reads itself, and of sockets that it leaves to be collected.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine alone, ended with the module."""
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(
        16
    )  # or else it would be written into the home directory
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=300 << 20,
        _node_ip_address="127.0.0.1",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
    del os.environ["RAY_AUTH_TOKEN"]


@pytest.fixture(scope="module")
def small() -> Corpus:
    """The small corpus."""
    return corpus.small()


def rows_of(data: Any) -> list[int]:
    """The rows that are left."""
    return sorted(row["row"] for row in data.take_all())


@pytest.mark.parametrize("ids", ["text", "integers"])
@pytest.mark.parametrize("counting", [False, True])
def test_ray_keeps_the_rows_that_the_rules_allow(ids: Any, counting: bool) -> None:
    """Whoever trains on Ray trains on the same people as everybody else."""
    given, tally = corpus.small(ids), Counter[Reason]()
    data = ray.data.from_arrow([given.table.slice(0, 1500), given.table.slice(1500)])

    found = ray_.filter(Sent(ids), data, purpose=given.purpose, tally=tally if counting else None)

    assert rows_of(found) == given.kept_rows
    assert found.schema().names == given.table.column_names
    assert tally == (given.reasons if counting else {})


def test_what_the_workers_know_when_they_read_counts(tmp_path: Path) -> None:
    """A Dataset is made long before it is read; where nothing is proven by then the job fails and
    does not end.
    """
    until, given = tmp_path / "until", corpus.small()
    data = ray.data.from_arrow(given.table)
    found = ray_.filter(Sent("text", until), data, purpose=given.purpose)
    assert rows_of(found) == given.kept_rows

    until.touch()

    with pytest.raises(Exception, match=r"trainer\.stale"):
        ray_.filter(Sent("text", until), data, purpose=given.purpose).take_all()


def test_a_client_is_refused_unless_its_view_is_shared(small: Corpus) -> None:
    """A client cannot be sent to Ray's workers; without a word they would answer by nothing."""
    client = object.__new__(Client)
    client.name, client._sharing = "unshared", None

    with pytest.raises(Refused) as refused:
        ray_.filter(client, ray.data.from_arrow(small.table), purpose=small.purpose)

    assert refused.value.code == "trainer.not_portable"


def test_missing_columns_are_told_before_anything_is_read(small: Corpus) -> None:
    """Not by a worker of a cluster, an hour later."""
    data = ray.data.from_arrow(small.table)
    with pytest.raises(InvalidInput, match="has no column 'member'; it has 'row', 'member_id'"):
        ray_.filter(Sent(), data, purpose=small.purpose, columns=Columns(member="member"))


def test_a_data_set_of_python_values_is_filtered_as_a_table_is(small: Corpus) -> None:
    """Ray holds what it is given in blocks of several kinds."""
    data = ray.data.from_items(small.table.to_pylist(), override_num_blocks=4)

    assert rows_of(ray_.filter(Sent(), data, purpose=small.purpose)) == small.kept_rows
    member = corpus.allowed_member(small)
    place = next(
        row["jurisdiction"] for row in small.kept.to_pylist() if row["member_id"] == member
    )
    mixed = [
        {"row": row, "member_id": one, "jurisdiction": place}
        for row, one in enumerate([member, 7, None, [1]])
    ]
    tally = Counter[Reason]()
    data = ray.data.from_items(mixed, override_num_blocks=1)
    assert rows_of(ray_.filter(Sent(), data, purpose=small.purpose, tally=tally)) == [0]
    assert tally[Reason.QUARANTINED] == 3


def test_a_million_rows_are_the_very_rows_of_the_other_filters() -> None:
    """What no small table shows: many blocks, decided in several processes by one decider of the
    object store.
    """
    given = corpus.big()
    table = given.table.select(["row", "member_id", "jurisdiction", "category", "collected_at"])
    data = ray.data.from_arrow(
        [table.slice(start, 100_000) for start in range(0, table.num_rows, 100_000)]
    )

    found = ray_.filter(given.decider, data, purpose=given.purpose)

    batches: Any = found.iter_batches(batch_format="pyarrow")
    rows = [row for batch in batches for row in batch["row"].to_pylist()]
    assert sorted(rows) == given.kept_rows
