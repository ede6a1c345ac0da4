"""What tests share: where `tests.strategies` is found, how Hypothesis searches, and the session's
one real stack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.stack import World

    from consentry.local.stack import LocalStack

ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# The same examples on every machine: a red build then means a changed program, not an unlucky draw.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: random ones would give each worker of pytest-xdist other ids."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the workers of pytest-xdist the tests on the real stack first: the last files are short."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("stack") is None)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """The one real stack of this session."""
    from tests.stack import shared_stack

    yield from shared_stack(lambda: tmp_path_factory.mktemp("stack"))


@pytest.fixture
def world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """A fresh namespace; whatever runs in it ends with the test, and what the test took down comes
    up again.
    """
    from tests.stack import SHARED, World

    SHARED.mend()
    world = World(shared, tmp_path)
    try:
        yield world
    finally:
        world.close()
        SHARED.mend()


@pytest.fixture
def bare(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """A namespace in which nothing has been prepared."""
    from tests.stack import World

    world = World(shared, tmp_path, prepare=False)
    yield world
    world.close()
