"""Signed bundles of all records and controls: the bundler writes them, trainers and others read.

`manifest` is the signed text and `keys` are those that sign; `state` is the content of a bundle.
`store` holds bundles, `writer` and `reader` write and read them. `public_columns` are the columns
for queries, `roaring` the sets of integer ids, and `diff` compares two bundles.
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
