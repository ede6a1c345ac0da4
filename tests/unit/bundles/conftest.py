"""Keys, a log with somebody in every condition, and a store in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.bundles.world import Log, populated

from consentry.bundles import BundleStore, PublicKeys, SigningKey


@pytest.fixture
def log() -> Log:
    """Members in every condition."""
    return populated()


@pytest.fixture(scope="session")
def key() -> SigningKey:
    """The bundler's."""
    return SigningKey.generate()


@pytest.fixture(scope="session")
def keys(key: SigningKey) -> PublicKeys:
    """What the readers believe."""
    return PublicKeys([key.public])


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    """A directory."""
    return BundleStore(tmp_path / "bundles")
