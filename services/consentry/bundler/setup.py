"""The needs of a bundler before its first turn: keys, a name, and the state to go on from."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from consentry.bundler.service import STALL_SECONDS
from consentry.bundles import (
    BundleRefused,
    BundleState,
    BundleStore,
    Manifest,
    PublicKeys,
    SigningKey,
    open_bundle,
    restore,
)
from consentry.bundles.keys import make_key_files
from consentry.domain.errors import Refused, Unavailable
from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.wire.catalog import Catalog

_ATTEMPTS_MAX: Final = 3
_HOST_LETTERS_MAX: Final = 40


def read_keys(
    signing_file: Path | None, public_files: Sequence[Path], *, make_key: bool
) -> tuple[SigningKey, PublicKeys]:
    """Return the bundler's signing key, and all keys that may have signed earlier bundles.

    `make_key` makes the signing key where its file is missing. Raises Refused and UnsafeSetting.
    """
    if signing_file is None:
        raise Refused(
            "No signing key is named: nobody would believe an unsigned bundle.",
            code="bundle.no_key",
            fix="run `consentry bundle keys init FILE` once, then give --key FILE",
        )
    if make_key and not signing_file.exists():
        make_key_files(signing_file)
    signing = SigningKey.read(signing_file)
    return signing, PublicKeys.read(*public_files).and_of(signing)


def require_store(url: str) -> str:
    """Return the URL of the bundler's store of bundles. Raises Refused where it is empty."""
    if not url:
        raise Refused(
            "No store for the bundles is named.",
            code="bundle.no_store",
            fix="give --store, or set CONSENTRY_BUNDLE_STORE: a directory, or a URL such as "
            "s3://bucket/bundles",
        )
    return url


def writer_name(worker_id: str) -> str:
    """Return the name under which this bundler claims the numbers of its bundles.

    A bundler with a worker id of its own goes on at once after it was killed, as the same writer.
    """
    if worker_id:
        return worker_id
    host = socket.gethostname()[:_HOST_LETTERS_MAX]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def restore_newest(
    store: BundleStore, believed: PublicKeys, namespace: str, catalog: Catalog, clock: Clock
) -> tuple[BundleState | None, Manifest | None]:
    """Return the bundler's state and manifest from the newest bundle in its store.

    Every byte of its chain is checked.

    Both are None where the store is empty. A chain that does not check ends the bundler: to write
    over it would hide what happened to it, and lose the members who are quarantined by nothing but
    the bundle. Raises BundleRefused and Unavailable.
    """
    for _attempt in range(_ATTEMPTS_MAX - 1):
        try:
            return _restore(store, believed, namespace, catalog, clock())
        except BundleRefused as error:
            # Another bundler may have published a newer bundle, and deleted this one's files.
            if error.code != "bundle.missing":
                raise
    return _restore(store, believed, namespace, catalog, clock())


def _restore(
    store: BundleStore, believed: PublicKeys, namespace: str, catalog: Catalog, now: Micros
) -> tuple[BundleState | None, Manifest | None]:
    try:
        bundle = open_bundle(store, keys=believed, namespace=namespace, now=now)
    except Unavailable as error:
        if error.code == "bundle.none":
            return None, None
        raise
    return restore(bundle, catalog), bundle.manifest


def liveness(*, idle_seconds: float, repairs: bool) -> dict[str, Any]:
    """Return the bundler's answer at /healthz: dead if it stands still or repairs no records."""
    return {
        "ok": idle_seconds < STALL_SECONDS and repairs,
        "seconds_since_progress": round(idle_seconds, 1),
        "heals": repairs,
    }
