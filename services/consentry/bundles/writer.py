"""The writer of bundles: files, manifest, signature; `publish` makes a bundle the newest."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from consentry.bundles.keys import SigningKey
from consentry.bundles.manifest import (
    DELTAS_MAX,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    POINTER_NAME,
    SIGNATURE_BYTES_MAX,
    SIGNATURE_NAME,
    BundleFile,
    Kind,
    Manifest,
    Parent,
    PartitionSummary,
    Pointer,
    Role,
    manifest_bytes,
    pointer_bytes,
    signature_bytes,
)
from consentry.bundles.public_columns import PublicRow, public_row
from consentry.bundles.roaring import integer_of, write_set
from consentry.bundles.state import BundleState, StoredControl
from consentry.bundles.store import BundleStore, NotThere
from consentry.domain.errors import Refused
from consentry.domain.values import Micros
from consentry.record_index import in_hash_order
from consentry.wire.catalog import Catalog
from consentry.wire.partitions import partitions_of
from consentry.wire.records import version_of
from consentry.wire.schemas import CONTROLS, RECORDS, topics

FILE_ROWS: Final = 1_000_000
GROUP_ROWS: Final = 250_000
_COMPRESSION_LEVEL: Final = 3
_OWN_COLUMNS: Final = (
    ("partition", pa.int32()),
    ("member_id", pa.string()),
    ("version", pa.int64()),
    ("record", pa.binary()),
    ("damaged", pa.bool_()),
)
"""The columns from which a reader rebuilds its state; those behind them are public_columns."""
_PUBLIC_COLUMNS: Final = (
    ("jurisdiction", pa.string()),
    ("age_band", pa.string()),
    ("erased", pa.bool_()),
    ("quarantined", pa.bool_()),
)
_CONTROL_COLUMNS: Final = (
    ("offset", pa.int64()),
    ("appended_at", pa.int64()),
    ("value", pa.binary()),
)


def write_bundle(
    store: BundleStore,
    state: BundleState,
    *,
    key: SigningKey,
    namespace: str,
    sequence: int,
    created_at: Micros,
    parent: Manifest | None = None,
    file_rows: int = FILE_ROWS,
) -> Manifest:
    """Write a bundle of the state: a delta on `parent` where one is given, else a snapshot.

    A delta has the changes since `state.mark()`, which this function or `restore` called when the
    state was `parent`. `sequence` is one more than that of the newest bundle in the store. Nobody
    sees the bundle before `publish`. Afterwards `state.changed` counts from this bundle. Needs the
    extra `bundler`. Raises Unavailable; Refused where `why_no_delta` returns a reason.
    """
    kind: Kind = "snapshot"
    deltas = 0
    named_parent: Parent | None = None
    start = 0
    if parent is not None:
        _require_delta(parent, state)
        kind = "delta"
        deltas = parent.deltas + 1
        named_parent = parent.as_parent()
        start = parent.controls_offset
    bundle = _Writer(store, f"{sequence:010d}-{kind}-{secrets.token_hex(8)}", state)
    members = _members_of(state, kind)
    bundle.write_records(members, file_rows=file_rows, is_delta=kind == "delta")
    new_controls = [control for control in state.stored_controls if control.offset >= start]
    bundle.write_controls(new_controls)
    manifest = Manifest(
        bundle_id=bundle.bundle_id,
        kind=kind,
        sequence=sequence,
        deltas=deltas,
        parent=named_parent,
        created_at=created_at,
        namespace=namespace,
        logs=dict(state.logs),
        partitions=_summaries(state),
        controls_offset=state.position(CONTROLS, 0),
        controls_count=len(state.stored_controls),
        newest_policy=state.newest_policy,
        purposes=state.purposes,
        schema_ids=_schema_ids(state.catalog),
        files=tuple(bundle.files),
    )
    manifest = bundle.write_manifest(manifest, key)
    state.mark()
    return manifest


def _require_delta(parent: Manifest, state: BundleState) -> None:
    """Raise Refused where a delta of the state cannot be written on this parent."""
    reason = why_no_delta(parent, state)
    if reason:
        raise Refused(
            f"No delta can be written: {reason}.", code="bundle.no_delta", fix="write a snapshot"
        )


def _members_of(state: BundleState, kind: Kind) -> list[bytes]:
    """Return the members of whom a bundle of this kind has a row."""
    if kind == "delta":
        changed = state.changed
        if changed is not None:
            return changed
    return state.members()


def publish(store: BundleStore, manifest: Manifest, *, key: SigningKey) -> None:
    """Make a written bundle the newest one of its store, in one write. Raises Unavailable."""
    pointer = Pointer(
        namespace=manifest.namespace,
        bundle_id=manifest.bundle_id,
        sequence=manifest.sequence,
        manifest_sha256=manifest.sha256,
        created_at=manifest.created_at,
    )
    store.write(POINTER_NAME, content=pointer_bytes(pointer, key))


def why_no_delta(parent: Manifest, state: BundleState) -> str:
    """Return why the next bundle cannot be a delta on `parent` but a snapshot; else empty."""
    went_back = [
        summary
        for summary in parent.partitions
        if state.records_offset(summary.partition) < summary.records_offset
    ]
    obstacles = (
        (state.changed is None, "it is not known what changed since a bundle was written or read"),
        (parent.deltas >= DELTAS_MAX, f"there are {parent.deltas} deltas on one snapshot already"),
        (
            dict(parent.logs) != state.logs or len(parent.partitions) != state.partitions,
            "the topics are not those of the parent",
        ),
        (
            parent.purposes != state.purposes,
            "the controls name other purposes, for which every member has a column",
        ),
        (
            parent.tainted != frozenset(state.freshness.tainted),
            "another partition is tainted, or one no longer is, and that bears on all of its "
            "members",
        ),
        (
            bool(went_back) or state.position(CONTROLS, 0) < parent.controls_offset,
            "less was read than the parent holds",
        ),
    )
    for is_in_the_way, reason in obstacles:
        if is_in_the_way:
            return reason
    return ""


def prune(store: BundleStore, *, newest: Manifest, keep: int) -> list[str]:
    """Delete old bundles from their store: all but the `keep` newest snapshots and what follows.

    `keep` is 1 or more.

    Returns the ids of the deleted bundles, oldest first. Bundles that were begun and never finished
    go with them. Nothing of a higher sequence than `newest` is touched: it is being written. Raises
    Unavailable.
    """
    assert keep >= 1
    bundle_ids = [
        bundle_id for bundle_id in store.bundle_ids() if _sequence_of(bundle_id) <= newest.sequence
    ]
    least = newest.sequence - newest.deltas
    for bundle_id in reversed(bundle_ids):
        if keep == 1:
            break
        is_older_snapshot = "-snapshot-" in bundle_id and _sequence_of(bundle_id) < least
        if is_older_snapshot and _is_finished(store, bundle_id):
            least, keep = _sequence_of(bundle_id), keep - 1
    deleted = [bundle_id for bundle_id in bundle_ids if _sequence_of(bundle_id) < least]
    for bundle_id in deleted:
        store.remove(bundle_id)
    return deleted


def _is_finished(store: BundleStore, bundle_id: str) -> bool:
    try:
        return bool(store.read(bundle_id, SIGNATURE_NAME, bytes_max=SIGNATURE_BYTES_MAX))
    except NotThere:
        return False


def _sequence_of(bundle_id: str) -> int:
    return int(bundle_id.split("-", 1)[0])


class _Writer:
    """Writes the files of one bundle and remembers what it wrote."""

    def __init__(self, store: BundleStore, bundle_id: str, state: BundleState) -> None:
        self.bundle_id = bundle_id
        self.files: list[BundleFile] = []
        self._store = store
        self._state = state

    def write_records(self, members: Sequence[bytes], *, file_rows: int, is_delta: bool) -> None:
        """Write the rows of these members, by their hashes, and the sets of integer ids."""
        purposes = self._state.purposes
        excluded: list[list[int]] = [[] for _ in purposes]
        included: list[list[int]] = [[] for _ in purposes]
        parts = _parts(members, self._state.partitions, file_rows)
        for number, (partitions, ids) in enumerate(parts):
            rows = self._public_rows(partitions, ids)
            content = _parquet(self._table(partitions, ids, rows))
            self._write(f"records-{number:05d}.parquet", "records", content, len(ids))
            for member, row in zip(ids, rows, strict=True):
                integer = integer_of(member)
                if integer is None:
                    continue
                for index, is_excluded in enumerate(row.own_exclusions):
                    if is_excluded:
                        excluded[index].append(integer)
                    elif is_delta:
                        included[index].append(integer)
        for index, purpose in enumerate(purposes):
            self._write_set("exclusions", index, purpose, excluded[index])
            if is_delta:
                self._write_set("inclusions", index, purpose, included[index])

    def _public_rows(self, partitions: Sequence[int], ids: Sequence[bytes]) -> list[PublicRow]:
        state, purposes = self._state, self._state.purposes
        tainted, damaged = state.freshness.tainted, state.damaged
        rows: list[PublicRow] = []
        for partition, member in zip(partitions, ids, strict=True):
            is_quarantined = member in damaged or partition in tainted
            raw = state.get(member)
            rows.append(public_row(member, raw, purposes, is_quarantined=is_quarantined))
        return rows

    def _table(
        self, partitions: Sequence[int], ids: Sequence[bytes], rows: Sequence[PublicRow]
    ) -> pa.Table:
        state, purposes = self._state, self._state.purposes
        records = [state.get(member) for member in ids]
        columns: list[Any] = [
            partitions,
            [member.decode() for member in ids],
            [0 if raw is None else version_of(raw) for raw in records],
            records,
            [member in state.damaged for member in ids],
            [row.jurisdiction for row in rows],
            [row.age_band for row in rows],
            [row.is_erased for row in rows],
            [row.is_quarantined for row in rows],
        ]
        fields = [*_OWN_COLUMNS, *_PUBLIC_COLUMNS]
        for index, purpose in enumerate(purposes):
            columns.append([row.choices[index] for row in rows])
            columns.append([row.own_exclusions[index] for row in rows])
            fields += [(f"choice_{purpose}", pa.string()), (f"own_exclusion_{purpose}", pa.bool_())]
        return _table(fields, columns)

    def write_controls(self, controls: Sequence[StoredControl]) -> None:
        """Write the messages of controls, as they stand in the log."""
        offsets: list[int] = []
        instants: list[Micros] = []
        values: list[bytes | None] = []
        for control in controls:
            offsets.append(control.offset)
            instants.append(control.appended_at)
            values.append(control.value)
        content = _parquet(_table(_CONTROL_COLUMNS, [offsets, instants, values]))
        self._write("controls.parquet", "controls", content, len(controls))

    def _write_set(self, role: Role, index: int, purpose: str, integers: Sequence[int]) -> None:
        # A reader of the set finds the purpose in the manifest; the file only has to have a name
        # that every system allows.
        purpose_in_name = re.sub(r"[^a-z0-9_-]", "_", purpose)[:64]
        name = f"own-{role}-{index:03d}-{purpose_in_name}.roaring64"
        self._write(name, role, write_set(integers), len(integers), purpose)

    def _write(self, name: str, role: Role, content: bytes, rows: int, purpose: str = "") -> None:
        self._store.write(self.bundle_id, name, content=content)
        sha256 = hashlib.sha256(content).hexdigest()
        file = BundleFile(
            name=name, role=role, size=len(content), sha256=sha256, rows=rows, purpose=purpose
        )
        self.files.append(file)

    def write_manifest(self, manifest: Manifest, key: SigningKey) -> Manifest:
        """Write the manifest and its signature; return the manifest with its SHA-256."""
        content = manifest_bytes(manifest)
        if len(content) > MANIFEST_BYTES_MAX:
            raise Refused(
                f"The manifest takes {len(content)} bytes; at most {MANIFEST_BYTES_MAX} are read.",
                code="bundle.manifest_too_large",
                fix="write files of more rows each",
            )
        self._store.write(self.bundle_id, MANIFEST_NAME, content=content)
        self._store.write(self.bundle_id, SIGNATURE_NAME, content=signature_bytes(content, key))
        return replace(manifest, sha256=hashlib.sha256(content).hexdigest())


def _parts(
    members: Sequence[bytes], partitions: int, file_rows: int
) -> Iterator[tuple[list[int], list[bytes]]]:
    """Yield partitions and ids, `file_rows` members at a time.

    The same state makes the same files. The members stand in the order in which a `Segment` keeps
    them, so that a trainer that starts need not sort them.
    """
    ordered = in_hash_order(members)
    for start in range(0, len(ordered), file_rows):
        part = ordered[start : start + file_rows]
        yield partitions_of(part, partitions).tolist(), part


def _table(fields: Sequence[tuple[str, pa.DataType]], columns: Sequence[Any]) -> pa.Table:
    arrays: list[pa.Array] = []
    for (_, kind), column in zip(fields, columns, strict=True):
        arrays.append(pa.array(column, type=kind))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _parquet(table: pa.Table) -> bytes:
    """Return the bytes of a Parquet file.

    The columns that a reader rebuilds from have no dictionary, so that their decoded sizes are
    known beforehand.
    """
    plain = {name for name, _ in (*_OWN_COLUMNS, *_CONTROL_COLUMNS)}
    with_dictionary = [name for name in table.column_names if name not in plain]
    with_statistics = [name for name in table.column_names if name not in ("record", "value")]
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=GROUP_ROWS,
        compression="zstd",
        compression_level=_COMPRESSION_LEVEL,
        use_dictionary=with_dictionary,
        write_statistics=with_statistics,
    )
    return out.getvalue()


def _summaries(state: BundleState) -> tuple[PartitionSummary, ...]:
    digests, counts = state.digests(), state.counts()
    frontiers = state.freshness.counted()
    damaged = [0] * state.partitions
    for partition in partitions_of(list(state.damaged), state.partitions).tolist():
        damaged[partition] += 1
    summaries: list[PartitionSummary] = []
    for partition in range(state.partitions):
        summary = PartitionSummary(
            partition=partition,
            records_offset=state.position(RECORDS, partition),
            members=counts[partition],
            damaged=damaged[partition],
            digest=digests[partition],
            tainted=partition in state.freshness.tainted,
            frontier=frontiers.get(partition),
        )
        summaries.append(summary)
    return tuple(summaries)


def _schema_ids(catalog: Catalog) -> dict[str, tuple[int, ...]]:
    names = {*topics()[RECORDS].records, *topics()[CONTROLS].records}
    return catalog.ids_for(names)
