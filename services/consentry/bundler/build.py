"""One run of the bundler: read the log to its end, write one bundle, publish it."""

from __future__ import annotations

from collections.abc import Mapping

from consentry.bundler.follower import BundleFollower
from consentry.bundles import (
    BundleState,
    BundleStore,
    Manifest,
    PublicKeys,
    SigningKey,
    publish,
    write_bundle,
)
from consentry.bundles.reader import latest, open_bundle, restore
from consentry.domain.errors import Refused, Unavailable
from consentry.ops.clock import Clock
from consentry.wire.catalog import Catalog


def next_sequence(store: BundleStore, keys: PublicKeys) -> int:
    """Return the number of the bundler's next bundle: one above the newest's; 1 without one.

    Raises BundleRefused, Unavailable.
    """
    try:
        return latest(store, keys).sequence + 1
    except Unavailable as error:
        if error.code == "bundle.none":
            return 1
        raise


def build(
    store: BundleStore,
    kafka: Mapping[str, str],
    catalog: Catalog,
    *,
    key: SigningKey,
    namespace: str,
    clock: Clock,
    is_delta: bool = False,
    believed: PublicKeys | None = None,
    stall_seconds: float = 30.0,
) -> Manifest:
    """Run the bundler once: read the topics to their ends, write one bundle and publish it.

    The ends are those seen at the start.

    With `is_delta` the newest bundle of the store is read first, and what changed since is written.
    `believed` are the keys that earlier bundles may be signed with, beside this one. Raises
    Refused, Unavailable, BundleRefused.
    """
    keys = PublicKeys([key.public]) if believed is None else believed
    if key.key_id not in keys:
        raise Refused(
            "The signing key is not among the keys that are believed: nobody could read the "
            "bundle.",
            code="bundle.key_not_believed",
            fix="name the signing key's public key too",
        )
    state: BundleState | None = None
    parent: Manifest | None = None
    if is_delta:
        bundle = open_bundle(store, keys=keys, namespace=namespace, now=clock())
        state, parent = restore(bundle, catalog), bundle.manifest
    sequence = next_sequence(store, keys)
    with BundleFollower(
        kafka, catalog, namespace=namespace, name="bundle-build", state=state
    ) as follower:
        follower.catch_up(stall_seconds)
        manifest = write_bundle(
            store,
            follower.state,
            key=key,
            namespace=namespace,
            sequence=sequence,
            created_at=clock(),
            parent=parent,
        )
    publish(store, manifest, key=key)
    return manifest
