"""The names that users import: a change of these lists is a change for all of them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PUBLIC = {
    "consentry.bundles": [
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
    ],
    "consentry.events": [
        "AgeBand",
        "Choice",
        "ConsentChanged",
        "MemberErased",
        "MemberId",
        "MemberRelocated",
        "Micros",
        "SentEvent",
    ],
    "consentry.producer": [
        "Acceptance",
        "AsyncConsentProducer",
        "ConsentProducer",
        "EventUndelivered",
        "QueueFull",
        "TokenKeys",
    ],
    "consentry.trainer": [
        "Client",
        "Columns",
        "ConsentDataset",
        "ConsentLoader",
        "ConsentStale",
        "Decisions",
        "ExcludedSelector",
        "JointSelector",
        "LeaseRevoked",
        "MlflowObserver",
        "OpenLineageObserver",
        "OrdersSelector",
        "TokenKeys",
        "bundle_decider",
        "filter_batches",
        "open_dataset",
        "ray_",
        "spark_",
        "system_clock",
    ],
}
NEED_AN_EXTRA = {
    "ConsentDataset",
    "ConsentLoader",
    "MlflowObserver",
    "OpenLineageObserver",
    "filter_batches",
    "ray_",
    "spark_",
}
"""Names whose modules need a library that only an extra installs."""


@pytest.mark.parametrize("module", PUBLIC)
def test_a_package_exports_these_names_and_no_others(module: str) -> None:
    """A name that goes away breaks whoever imports it, at their next upgrade."""
    package = import_module(module)

    assert package.__all__ == PUBLIC[module]
    for name in set(PUBLIC[module]) - NEED_AN_EXTRA:
        assert getattr(package, name) is not None


def test_the_events_need_no_kafka_client() -> None:
    """A web service that only writes to its outbox would have to install one."""
    program = (
        "import sys, consentry.events; "
        "sys.exit(any(name in sys.modules for name in ('confluent_kafka', 'numpy', 'pyarrow')))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
