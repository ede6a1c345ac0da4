"""The decider that a command asks: a client that follows Kafka, or a signed bundle.

Each is imported only where it is asked: a check by a bundle loads no Kafka client, and `--help`
loads neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from consentry.ops.settings import Settings
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.wire.tokens import TokenKeys

if TYPE_CHECKING:
    from consentry.trainer.client import Client


@contextmanager
def connect_client(
    settings: Settings,
    command: str,
    *,
    token_keys: TokenKeys | None = None,
    at_least: str | None = None,
) -> Iterator[Client]:
    """Connect a trainer's client for the time of one command, ready to decide.

    With `at_least`, a consistency token, it also knows what was accepted with that token. Raises
    Refused, and Unavailable where it does not get ready in time.
    """
    from consentry.trainer.client import (  # noqa: PLC0415 - only where Kafka is asked
        TOKEN_WAIT_SECONDS,
        Client,
    )

    with Client.connect(
        settings.kafka(),
        name=f"{command}-{os.getpid()}",
        registry_url=settings.registry_url,
        registry=settings.registry(),
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
        token_keys=token_keys,
    ) as client:
        if at_least is not None:
            client.wait_for(at_least, TOKEN_WAIT_SECONDS)
        yield client


def open_bundle_decider(url: str, key_file: Path, *, max_age_seconds: float) -> SnapshotDecider:
    """Open the newest bundle of a store for a command, as a decider that needs no addresses.

    Raises InvalidInput, BundleRefused and Unavailable.
    """
    from consentry.bundles import PublicKeys  # noqa: PLC0415 - only where a bundle is asked
    from consentry.trainer.bundled import bundle_decider  # noqa: PLC0415 - see above

    return bundle_decider(
        url,
        keys=PublicKeys.read(key_file),
        namespace=Settings.parse().namespace,
        max_age_seconds=max_age_seconds,
    )
