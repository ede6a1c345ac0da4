"""The stores of API keys keep one contract: in memory, and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.key_store_contract import KeyStoreContract

from consentry.gateway.access.key_file import FileKeyStore
from consentry.gateway.access.keys import InMemoryKeyStore, KeyStore


class TestInMemoryKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self) -> KeyStore:
        return InMemoryKeyStore()


class TestFileKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> KeyStore:
        return FileKeyStore(tmp_path / "keys.json")
