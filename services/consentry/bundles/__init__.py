"""Signed bundles of all records and controls: written by the bundler, read by trainers and by
anybody else.

`manifest` is what is signed, `keys` by whom, `state` what a bundle is made of, `store` where it
lies, `writing` and `reading` the two ways, `readable` the columns for people, `roaring` the sets of
integer ids, `comparing` two bundles.
"""

from consentry.bundles.errors import BundleRefused
from consentry.bundles.keys import PublicKeys, SigningKey
from consentry.bundles.manifest import BundleFile, Manifest, PartitionSummary, Pointer
from consentry.bundles.reader import Bundle, open_bundle, restore
from consentry.bundles.state import BundleState, Regression, StoredControl
from consentry.bundles.store import BundleStore
from consentry.bundles.writer import prune, publish, why_no_delta, write_bundle

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
