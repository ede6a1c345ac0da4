"""A trainer's snapshot from a bundle: in seconds, and also where there is no Kafka."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pyarrow as pa

from consentry.bundles import Bundle, BundleRefused, PublicKeys, open_bundle
from consentry.bundles.http_store import open_store
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import Micros
from consentry.ops.clock import Clock, system_clock
from consentry.record_index import Segment, SegmentWriter
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import NAMESPACE

_OPEN_ATTEMPTS_MAX: Final = 3
_COLUMNS: Final = ("member_id", "record", "damaged")


def snapshot_of(
    bundle: Bundle, *, catalog: Catalog | None = None, directory: Path | None = None
) -> Snapshot:
    """Return the trainer's snapshot that a bundle holds. Raises BundleRefused, Unavailable.

    The records lie in files without a name in `directory` (default: that of temporary files), so
    that memory holds their pages only as long as nobody needs it more.
    """
    manifest = bundle.manifest
    catalog = catalog or bundle.catalog()
    snapshot_rows = sum(file.rows for file in bundle.manifests[0].with_role("records"))
    batches = iter(bundle.record_batches(columns=_COLUMNS))
    segments, damaged = _segments(batches, snapshot_rows, directory)
    snapshot = Snapshot(len(manifest.partitions), iso_jurisdictions(), segments)
    if len(snapshot.records) != sum(map(len, segments)):
        raise BundleRefused(
            "malformed", "A member is named twice in the snapshot: which record counts is not said."
        )
    snapshot.quarantine(damaged)
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
    for summary in manifest.partitions:
        if summary.tainted:
            snapshot.freshness.tainted.add(summary.partition)
        if summary.frontier is not None:
            snapshot.apply_frontier(summary.frontier)
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
    """Return the trainer's snapshot from the newest bundle of a store, and the bundle.

    The store may be a gateway's /v1/bundles. The bundler deletes old chains: one that vanishes
    while it is read is not the newest one any more, and the next one is tried. Raises
    BundleRefused, Unavailable.
    """
    store = open_store(url, credential=credential)
    attempt = 0
    while True:
        attempt += 1
        try:
            bundle = open_bundle(
                store, keys=keys, namespace=namespace, now=now, max_age_seconds=max_age_seconds
            )
            return snapshot_of(bundle, catalog=catalog, directory=directory), bundle
        except BundleRefused as error:
            if error.code != "bundle.missing" or attempt == _OPEN_ATTEMPTS_MAX:
                raise


def believed_keys(keys: PublicKeys | Path | str | None) -> PublicKeys:
    """Return the public keys that a trainer's bundles are believed by, maybe from a file.

    Raises InvalidInput for None and for a wrong file.
    """
    if keys is None:
        raise InvalidInput(
            "A store of bundles was given without the keys to believe.",
            code="bundle.no_keys",
            fix="give bundle_keys, the file of the bundler's public key",
        )
    return keys if isinstance(keys, PublicKeys) else PublicKeys.read(keys)


def check_logs(bundle: Bundle, identity_of: Callable[[str], str]) -> None:
    """Raise Refused where a trainer's bundle was read from other topics than this broker's.

    `identity_of` returns the identity (kafka.log_identity, hexadecimal) of a topic by short name.
    """
    for topic, identity in bundle.manifest.logs.items():
        if identity and identity != identity_of(topic):
            raise Refused(
                f"The bundle {bundle.manifest.bundle_id} was read from another topic {topic} "
                "than the one of this broker: that was made anew since, or the bundle is of "
                "another cluster.",
                code="bundle.other_log",
                fix="take the bundles of this cluster, or have its bundler write a snapshot",
            )


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
    """Return a trainer's Decider by the newest bundle of a store.

    Everything is STALE once the bundle was proven fresh longer than `max_age_seconds` ago. Raises
    BundleRefused, Unavailable.
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
    """Return the first `rows` rows as segments, and their damaged members.

    Reads no batch beyond them.
    """
    segments: list[Segment] = []
    damaged_members: list[bytes] = []
    with ExitStack() as stack:
        writer = _writer(stack, directory)
        while rows > 0:
            batch = next(batches)  # a file has as many rows as its manifest says, or was refused
            ids, records, damaged = (batch.column(name) for name in _COLUMNS)
            ids = ids.cast(pa.binary())
            damaged_members += ids.filter(damaged).to_pylist()
            if records.null_count:
                has_record = records.is_valid()
                ids, records = ids.filter(has_record), records.filter(has_record)
            if not writer.add(ids, records):
                segments.append(writer.finish())
                writer = _writer(stack, directory)
                writer.add(ids, records)
            rows -= batch.num_rows
        segments.append(writer.finish())
    return tuple(segments), damaged_members


def _writer(stack: ExitStack, directory: Path | None) -> SegmentWriter:
    return SegmentWriter(
        stack.enter_context(tempfile.TemporaryFile(dir=directory, prefix="consentry-records-"))
    )


def _apply_changes(snapshot: Snapshot, batch: pa.RecordBatch) -> None:
    """Take the rows of a delta in.

    A row without a record is of a member who has none. If the snapshot has a record of that member,
    bundle and snapshot contradict each other, and the member is quarantined.
    """
    members, records, damaged = (batch.column(name).to_pylist() for name in _COLUMNS)
    keys = [member.encode() for member in members]
    keys_with_record: list[bytes] = []
    records_there: list[bytes] = []
    for key, record in zip(keys, records, strict=True):
        if record is not None:
            keys_with_record.append(key)
            records_there.append(record)
    snapshot.records.apply(keys_with_record, records_there)
    members_in_doubt: list[bytes] = []
    for key, record, is_damaged in zip(keys, records, damaged, strict=True):
        if is_damaged or (record is None and key in snapshot.records):
            members_in_doubt.append(key)
    snapshot.quarantine(members_in_doubt)
