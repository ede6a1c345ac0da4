"""Ray Data: the same rows as everywhere, judged in Ray's workers by what they know when they read."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import ray.data
from tests.contract.filters import corpus
from tests.contract.filters.corpus import Corpus
from tests.heavy.judges import Sent

from consentry.domain.values import Reason
from consentry.trainer.integrations import ray_

# Ray warns of settings that it reads itself, and of sockets that it leaves to be collected.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine alone, ended with the module."""
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)  # or else it would be written into the home directory
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
