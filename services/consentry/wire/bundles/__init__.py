"""Signed bundles of all records and controls: written by the bundler, read by trainers and by anybody else.

`manifest` is what is signed, `keys` by whom, `state` what a bundle is made of, `store` where it lies, `writing` and
`reading` the two ways, `readable` the columns for people, `roaring` the sets of integer ids, `comparing` two bundles.
"""

from consentry.wire.bundles.errors import BundleRefused
from consentry.wire.bundles.keys import PublicKeys, SigningKey
from consentry.wire.bundles.manifest import BundleFile, Manifest, PartitionSummary, Pointer
from consentry.wire.bundles.reading import Bundle, open_bundle, restore
from consentry.wire.bundles.state import BundleState, Regression, StoredControl
from consentry.wire.bundles.store import BundleStore
from consentry.wire.bundles.writing import prune, publish, why_no_delta, write_bundle

__all__ = [
    "Bundle",
    "BundleFile",
    "BundleRefused",
    "BundleState",
    "BundleStore",
    "Manifest",
    "PartitionSummary",
    "Pointer",
    "PublicKeys",
    "Regression",
    "SigningKey",
    "StoredControl",
    "open_bundle",
    "prune",
    "publish",
    "restore",
    "why_no_delta",
    "write_bundle",
]
