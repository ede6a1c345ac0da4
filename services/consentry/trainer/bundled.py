"""A trainer's view from a bundle: in seconds what takes minutes to read from Kafka, and offline
without any Kafka.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pyarrow as pa

from consentry.bundles import Bundle, BundleRefused, PublicKeys, open_bundle
from consentry.bundles.http_store import open_store
from consentry.domain.values import Micros
from consentry.ops.clock import Clock, system_clock
from consentry.record_index import Segment, SegmentWriter
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import NAMESPACE

_TRIES: Final = 3
_COLUMNS: Final = ("member_id", "record", "damaged")


def snapshot_of(
    bundle: Bundle, *, catalog: Catalog | None = None, directory: Path | None = None
) -> Snapshot:
    """The view that a bundle holds, as of its positions. Raises BundleRefused, Unavailable.

    The records lie in files without a name in `directory` (default: that of temporary files), so
    that memory holds their pages only as long as nobody needs it more.
    """
    manifest = bundle.manifest
    catalog = catalog or bundle.catalog()
    snapshot_rows = sum(file.rows for file in bundle.manifests[0].with_role("records"))
    batches = iter(bundle.record_batches(columns=_COLUMNS))
    bases, held = _segments(batches, snapshot_rows, directory)
    snapshot = Snapshot(len(manifest.partitions), iso_jurisdictions(), bases)
    if len(snapshot.records) != sum(map(len, bases)):
        raise BundleRefused(
            "malformed", "A member is named twice in the snapshot: which record counts is not said."
        )
    snapshot.quarantine(held)
    for batch in batches:
        _apply_changes(snapshot, batch)
    for control in bundle.controls():
        snapshot.apply_control(
            read_control_or_pause(
                control.value,
                offset=control.offset,
                appended_at=control.appended_at,
                catalog=catalog,
            )
        )
    snapshot.positions.update(bundle.positions)
    for one in manifest.partitions:
        if one.tainted:
            snapshot.freshness.tainted.add(one.partition)
        if one.frontier is not None:
            snapshot.apply_frontier(one.frontier)
    snapshot.settle_frontiers()
    return snapshot


def newest_snapshot(
    url: str,
    *,
    keys: PublicKeys,
    namespace: str | None,
    now: Micros,
    max_age_seconds: float,
    catalog: Catalog | None = None,
    directory: Path | None = None,
    credential: str = "",
) -> tuple[Snapshot, Bundle]:
    """The view of the newest bundle of a store, which may be a gateway's /v1/bundles, and the
    bundle.

    Raises BundleRefused, Unavailable. The bundler deletes old chains: one that vanishes while it is
    read is not the newest one any more.
    """
    store = open_store(url, credential=credential)
    for _ in range(_TRIES - 1):
        try:
            bundle = open_bundle(
                store, keys=keys, namespace=namespace, now=now, max_age_seconds=max_age_seconds
            )
            return snapshot_of(bundle, catalog=catalog, directory=directory), bundle
        except BundleRefused as error:
            if error.code != "bundle.missing":
                raise
    bundle = open_bundle(
        store, keys=keys, namespace=namespace, now=now, max_age_seconds=max_age_seconds
    )
    return snapshot_of(bundle, catalog=catalog, directory=directory), bundle


def bundle_decider(
    url: str,
    *,
    keys: PublicKeys,
    namespace: str | None = NAMESPACE,
    max_age_seconds: float,
    clock: Clock = system_clock,
    directory: Path | None = None,
    credential: str = "",
) -> SnapshotDecider:
    """Judges by the newest bundle of a store, as long as that was proven fresh so lately; then all
    is STALE.

    Raises BundleRefused, Unavailable.
    """
    snapshot, _ = newest_snapshot(
        url,
        keys=keys,
        namespace=namespace,
        now=clock(),
        max_age_seconds=max_age_seconds,
        directory=directory,
        credential=credential,
    )
    return SnapshotDecider(snapshot, clock=clock, stale_after_seconds=max_age_seconds)


def _segments(
    batches: Iterator[pa.RecordBatch], rows: int, directory: Path | None
) -> tuple[tuple[Segment, ...], list[bytes]]:
    """The first so many rows as segments, and who of them is held. Reads no batch beyond."""
    segments: list[Segment] = []
    held: list[bytes] = []
    with ExitStack() as stack:
        writer = _writer(stack, directory)
        while rows > 0:
            batch = next(batches)  # a file has as many rows as its manifest says, or was refused
            ids, records, damaged = (batch.column(name) for name in _COLUMNS)
            ids = ids.cast(pa.binary())
            held += ids.filter(damaged).to_pylist()
            if records.null_count:
                ids, records = (column.filter(records.is_valid()) for column in (ids, records))
            if not writer.add(ids, records):
                segments.append(writer.finish())
                writer = _writer(stack, directory)
                writer.add(ids, records)
            rows -= batch.num_rows
        segments.append(writer.finish())
    return tuple(segments), held


def _writer(stack: ExitStack, directory: Path | None) -> SegmentWriter:
    return SegmentWriter(
        stack.enter_context(tempfile.TemporaryFile(dir=directory, prefix="consentry-records-"))
    )


def _apply_changes(snapshot: Snapshot, batch: pa.RecordBatch) -> None:
    """Take the rows of a delta in.

    Who has no record there and is not held had none before; if so, they are quarantined.
    """
    columns = (batch.column(name) for name in _COLUMNS)
    members, records, damaged = (column.to_pylist() for column in columns)
    keys = [member.encode() for member in members]
    whole = [place for place, record in enumerate(records) if record is not None]
    snapshot.records.apply([keys[place] for place in whole], [records[place] for place in whole])
    snapshot.quarantine(
        key
        for key, record, is_damaged in zip(keys, records, damaged, strict=True)
        if is_damaged or (record is None and key in snapshot.records)
    )
