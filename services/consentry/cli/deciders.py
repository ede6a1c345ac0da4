"""The decider that a command asks: a client that follows Kafka, or a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consentry.bundles import PublicKeys
from consentry.ops.settings import Settings
from consentry.trainer.bundled import bundle_decider
from consentry.trainer.client import Client
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.wire.tokens import TokenKeys


@contextmanager
def connect_client(
    settings: Settings, command: str, *, token_keys: TokenKeys | None = None
) -> Iterator[Client]:
    """Connect a client for the time of one command, ready to decide.

    Raises Refused, and Unavailable where it does not get ready in time.
    """
    with Client.connect(
        settings.kafka(),
        name=f"{command}-{os.getpid()}",
        registry_url=settings.registry_url,
        registry=settings.registry(),
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
        token_keys=token_keys,
    ) as client:
        yield client


def open_bundle_decider(url: str, key_file: Path, *, max_age_seconds: float) -> SnapshotDecider:
    """Return a decider by the newest bundle of a store; it needs no addresses.

    Raises InvalidInput, BundleRefused and Unavailable.
    """
    return bundle_decider(
        url,
        keys=PublicKeys.read(key_file),
        namespace=Settings.parse().namespace,
        max_age_seconds=max_age_seconds,
    )
