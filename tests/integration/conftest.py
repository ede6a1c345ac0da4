"""Fixtures of the integration tests: the session's one stack, and a namespace of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stack import SHARED, World, shared_stack

from consentry.local.stack import LocalStack


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """The real stack of this session."""
    yield from shared_stack(lambda: tmp_path_factory.mktemp("stack"))


@pytest.fixture
def world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """A fresh namespace; whatever runs in it ends with the test, and what the test took down comes up again."""
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
    world = World(shared, tmp_path, prepare=False)
    yield world
    world.close()
