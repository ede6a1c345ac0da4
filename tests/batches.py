"""Batches taken through all steps of the materialiser, for tests that look at the end only."""

from __future__ import annotations

from collections.abc import Sequence

from consentry.processor.batches import BatchResult, EventBatch, OwnedPartition
from consentry.processor.materialiser import Materialiser


def apply_batches(
    materialiser: Materialiser, batches: Sequence[tuple[OwnedPartition, EventBatch]]
) -> list[BatchResult]:
    """Store, publish and settle batches of different partitions."""
    group = materialiser.store(batches)
    materialiser.publish(group)
    return materialiser.settle(group)


def apply_batch(
    materialiser: Materialiser, owned: OwnedPartition, events: EventBatch
) -> BatchResult:
    """Store, publish and settle one batch; its refusal is raised."""
    [result] = apply_batches(materialiser, [(owned, events)])
    if result.refused is not None:
        raise result.refused
    return result
