"""The reader of bundles: it believes nothing that no bundler signed, and returns checked bytes.

A file is read into memory whole, checked, and then read from there: the bytes that were checked are
the bytes that are used, whoever may write to the store meanwhile.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from consentry.bundles.errors import BundleRefused
from consentry.bundles.keys import PublicKeys
from consentry.bundles.manifest import (
    BUNDLE_ID_PATTERN,
    DELTAS_MAX,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    POINTER_BYTES_MAX,
    POINTER_NAME,
    SIGNATURE_BYTES_MAX,
    SIGNATURE_NAME,
    BundleFile,
    Manifest,
    Pointer,
    Role,
    read_manifest,
    read_pointer,
)
from consentry.bundles.roaring import read_set
from consentry.bundles.state import BundleState, StoredControl
from consentry.bundles.store import BundleStore, NotThere
from consentry.domain.errors import Refused, Unavailable
from consentry.domain.values import Micros
from consentry.wire.catalog import Catalog, catalog_of_ids
from consentry.wire.freshness import BUNDLE_CLOCKS_SECONDS_MAX
from consentry.wire.schemas import CONTROLS, RECORDS

BATCH_ROWS: Final = 131_072
GROUP_ROWS_MAX: Final = 1_000_000
GROUP_BYTES_MAX: Final = 1 << 30
_RECORD_TYPES: Final = {
    "partition": pa.int32(),
    "member_id": pa.string(),
    "version": pa.int64(),
    "record": pa.binary(),
    "damaged": pa.bool_(),
}
_CONTROL_TYPES: Final = {"offset": pa.int64(), "appended_at": pa.int64(), "value": pa.binary()}
_PLAIN: Final = frozenset({"PLAIN", "RLE", "BIT_PACKED"})
"""Encodings without dictionaries: decoded columns are not larger than the file says they are."""


def latest(store: BundleStore, keys: PublicKeys) -> Pointer:
    """Return the pointer to the newest bundle in a store. Raises BundleRefused, Unavailable."""
    try:
        content = store.read(POINTER_NAME, bytes_max=POINTER_BYTES_MAX)
    except NotThere:
        raise Unavailable(
            "The store holds no bundle, or cannot be seen.",
            code="bundle.none",
            fix="check the URL, that a gateway behind it has CONSENTRY_BUNDLE_STORE, and that the "
            "bundler runs",
        ) from None
    if len(content) > POINTER_BYTES_MAX:
        raise BundleRefused(
            "too_large", f"The pointer to the newest bundle has over {POINTER_BYTES_MAX} bytes."
        )
    return read_pointer(content, keys)


def open_bundle(
    store: BundleStore | str,
    *,
    keys: PublicKeys,
    namespace: str | None,
    now: Micros,
    max_age_seconds: float | None = None,
    least_sequence: int = 0,
    bundle_id: str | None = None,
) -> Bundle:
    """Open the newest bundle of a store, or the one named `bundle_id`, with its chain.

    Manifests are checked now, files as they are read. `namespace` None takes any. `max_age_seconds`
    bounds how long ago everything was proven fresh (`Manifest.proven_at`). `least_sequence` is that
    of the newest bundle seen before: an older one is a roll-back. Raises BundleRefused (codes:
    errors.CODES); Unavailable where the store does not answer or holds no bundle.
    """
    if not isinstance(store, BundleStore):
        store = BundleStore(store)
    if bundle_id is None:
        newest = _newest_manifest(store, keys)
    else:
        newest = _manifest(store, bundle_id, keys)
    if namespace is not None and newest.namespace != namespace:
        raise BundleRefused(
            "foreign",
            f"The bundle is of the namespace {newest.namespace[:80]!r}, not of {namespace[:80]!r}.",
        )
    if newest.sequence < least_sequence:
        raise BundleRefused(
            "rolled_back",
            f"The bundle has the number {newest.sequence}; number {least_sequence} was seen "
            "before.",
        )
    _check_age(newest, now, max_age_seconds)
    return Bundle(store, _chain(store, newest, keys))


def _newest_manifest(store: BundleStore, keys: PublicKeys) -> Manifest:
    pointer = latest(store, keys)
    newest = _manifest(store, pointer.bundle_id, keys)
    named = (pointer.manifest_sha256, pointer.sequence, pointer.namespace)
    if named != (newest.sha256, newest.sequence, newest.namespace):
        raise BundleRefused("altered", "The newest bundle is not the one that the pointer names.")
    return newest


def _check_age(newest: Manifest, now: Micros, max_age_seconds: float | None) -> None:
    age = (now - newest.created_at) / 1e6
    if age < -BUNDLE_CLOCKS_SECONDS_MAX:
        raise BundleRefused(
            "from_the_future",
            f"The bundle was made {-age:.0f} s from now: it would not grow old in time.",
            fix="set the clocks of this machine and of the bundler's",
        )
    proven = math.inf
    detail = "never, for some partition"
    if newest.proven_at > 0:
        proven = (now - newest.proven_at) / 1e6
        detail = f"{proven:.0f} s ago"
    if max_age_seconds is not None and not proven <= max_age_seconds:
        raise BundleRefused(
            "expired",
            f"The bundle was proven fresh {detail}; the bound is {max_age_seconds:g} s.",
            fix="check that the bundler and the processor run, or have a bundle built",
        )


def _manifest(store: BundleStore, bundle_id: str, keys: PublicKeys) -> Manifest:
    """Return the manifest in a bundle's directory. Raises BundleRefused, Unavailable."""
    if BUNDLE_ID_PATTERN.fullmatch(bundle_id) is None:
        raise BundleRefused("file_name", f"{bundle_id[:80]!r} is not the id of a bundle.")
    try:
        content = store.read(bundle_id, MANIFEST_NAME, bytes_max=MANIFEST_BYTES_MAX)
    except NotThere:
        raise BundleRefused(
            "missing", f"The bundle {bundle_id} is not in the store, or not whole."
        ) from None
    if len(content) > MANIFEST_BYTES_MAX:
        raise BundleRefused("too_large", f"The manifest has over {MANIFEST_BYTES_MAX} bytes.")
    try:
        signature: bytes | None = store.read(
            bundle_id, SIGNATURE_NAME, bytes_max=SIGNATURE_BYTES_MAX
        )
    except NotThere:
        signature = None
    if signature is not None and len(signature) > SIGNATURE_BYTES_MAX:
        raise BundleRefused("too_large", f"The signature has over {SIGNATURE_BYTES_MAX} bytes.")
    manifest = read_manifest(content, signature, keys)
    if manifest.bundle_id != bundle_id:
        raise BundleRefused(
            "chain", f"In the place of the bundle {bundle_id} stands {manifest.bundle_id}."
        )
    return manifest


def _chain(store: BundleStore, newest: Manifest, keys: PublicKeys) -> tuple[Manifest, ...]:
    """Return the manifests from the snapshot to the newest one, each named by the next."""
    if newest.deltas > DELTAS_MAX:
        raise BundleRefused(
            "too_large", f"The chain has {newest.deltas} deltas; {DELTAS_MAX} are read at most."
        )
    chain = [newest]
    while (named := chain[-1].parent) is not None:
        parent = _manifest(store, named.bundle_id, keys)
        _check_link(chain[-1], parent)
        chain.append(parent)
    return tuple(reversed(chain))


def _check_link(child: Manifest, parent: Manifest) -> None:
    """Raise BundleRefused unless the delta `child` was made on this parent and on no other."""
    if child.parent is None or child.parent != parent.as_parent():
        raise BundleRefused(
            "chain",
            f"The delta {child.bundle_id} was made on another bundle than the one in its place.",
        )
    if _topics_of(child) != _topics_of(parent):
        raise BundleRefused(
            "foreign", f"The delta {child.bundle_id} is of other topics than its parent."
        )
    pairs = zip(parent.partitions, child.partitions, strict=True)
    records_go_on = all(after.records_offset >= before.records_offset for before, after in pairs)
    controls_go_on = child.controls_offset >= parent.controls_offset
    is_next = (child.sequence, child.deltas) == (parent.sequence + 1, parent.deltas + 1)
    if not (records_go_on and controls_go_on and is_next):
        raise BundleRefused(
            "chain", f"The delta {child.bundle_id} does not go on from where its parent ends."
        )


def _topics_of(manifest: Manifest) -> tuple[object, ...]:
    """Return what has to be equal all along a chain."""
    return (
        manifest.namespace,
        dict(manifest.logs),
        len(manifest.partitions),
        manifest.purposes,
        manifest.tainted,
    )


class Bundle:
    """An opened bundle and those it builds on: `manifests[0]` is the snapshot, the rest deltas.

    A later row of a member replaces an earlier one.
    """

    def __init__(self, store: BundleStore, manifests: tuple[Manifest, ...]) -> None:
        self.manifests = manifests
        self._store = store

    @property
    def manifest(self) -> Manifest:
        """The manifest of the newest bundle in the chain."""
        return self.manifests[-1]

    @property
    def positions(self) -> dict[tuple[str, int], int]:
        """The next offset to follow on from, by (short topic name, partition).

        The topics are records and controls.
        """
        positions = {(CONTROLS, 0): self.manifest.controls_offset}
        for summary in self.manifest.partitions:
            positions[RECORDS, summary.partition] = summary.records_offset
        return positions

    def record_batches(
        self, *, batch_rows: int = BATCH_ROWS, columns: Sequence[str] | None = tuple(_RECORD_TYPES)
    ) -> Iterator[pa.RecordBatch]:
        """Yield all records in the bundle's chain; a member's last row counts.

        The snapshot's come first, then each delta's.

        Columns: partition (int32), member_id (string), version (int64), record (binary; null: no
        record), damaged (bool: the member stays quarantined by the reader), or some of them; None:
        also the public ones. Raises BundleRefused, Unavailable.
        """
        names: list[str] | None = None
        if columns is not None:
            names = list(columns)
        for manifest in self.manifests:
            for file in manifest.with_role("records"):
                parquet = self._parquet(manifest, file, _RECORD_TYPES)
                yield from parquet.iter_batches(
                    batch_size=batch_rows, columns=names, use_threads=False
                )

    def controls(self) -> list[StoredControl]:
        """Return the messages of all controls in log order; `read_control_or_pause` reads them.

        Raises BundleRefused, Unavailable.
        """
        controls: list[StoredControl] = []
        for manifest in self.manifests:
            for file in manifest.with_role("controls"):
                controls += self._controls_in(manifest, file)
        offsets = [control.offset for control in controls]
        ascends = all(earlier < later for earlier, later in pairwise(offsets))
        if len(controls) != self.manifest.controls_count or not ascends:
            raise BundleRefused("malformed", "The controls of the bundle are not those of a log.")
        return controls

    def _controls_in(self, manifest: Manifest, file: BundleFile) -> Iterator[StoredControl]:
        parquet = self._parquet(manifest, file, _CONTROL_TYPES)
        table = parquet.read(columns=list(_CONTROL_TYPES), use_threads=False)
        columns = [table.column(name).to_pylist() for name in _CONTROL_TYPES]
        for offset, appended_at, value in zip(*columns, strict=True):
            yield StoredControl(offset, Micros(appended_at), value)

    def own_exclusions(self, purpose: str) -> Any:
        """Return the members with integer ids whom their own facts exclude from a purpose.

        It is a pyroaring BitMap64, and not the whole decision: pauses, policies and rows exclude
        others. Needs the extra `bundler`. Raises Refused for a purpose that no policy of the bundle
        names; BundleRefused, Unavailable.
        """
        if purpose not in self.manifest.purposes:
            purposes = ", ".join(self.manifest.purposes)[:300]
            if not purposes:
                purposes = "none: no policy was published"
            raise Refused(
                f"The bundle has no set for the purpose {purpose[:80]!r}.",
                code="bundle.purpose",
                fix=f"ask for one of {purposes}",
            )
        excluded: Any = read_set(b"\0" * 8)
        for manifest in self.manifests:
            for members in self._sets(manifest, "inclusions", purpose):
                excluded = excluded - members
            for members in self._sets(manifest, "exclusions", purpose):
                excluded = excluded | members
        return excluded

    def _sets(self, manifest: Manifest, role: Role, purpose: str) -> Iterator[Any]:
        for file in manifest.with_role(role):
            if file.purpose == purpose:
                yield read_set(self._checked(manifest, file))

    def catalog(self) -> Catalog:
        """Return the catalog of the bundle's own schema ids: no registry is needed."""
        return catalog_of_ids(self.manifest.schema_ids)

    def check_files(self) -> int:
        """Read and check every file of the bundle's chain, and count their bytes.

        Raises BundleRefused, Unavailable.
        """
        size = 0
        for manifest in self.manifests:
            for file in manifest.files:
                size += len(self._checked(manifest, file))
        return size

    def _checked(self, manifest: Manifest, file: BundleFile) -> bytes:
        """Return the bytes of a file, which are the ones that were signed for."""
        try:
            content = self._store.read(manifest.bundle_id, file.name, bytes_max=file.size)
        except NotThere:
            raise BundleRefused(
                "missing", f"The file {file.name} of {manifest.bundle_id} is not there."
            ) from None
        if len(content) < file.size:
            raise BundleRefused(
                "truncated",
                f"The file {file.name} of {manifest.bundle_id} has {len(content)} of {file.size} "
                "bytes.",
            )
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise BundleRefused(
                "altered",
                f"The file {file.name} of {manifest.bundle_id} is not the one signed for.",
            )
        return content

    def _parquet(
        self, manifest: Manifest, file: BundleFile, types: dict[str, pa.DataType]
    ) -> pq.ParquetFile:
        """Return the file, once it is known that decoding these columns stays within bounds."""
        content = self._checked(manifest, file)
        try:
            parquet = pq.ParquetFile(pa.BufferReader(content))
        except (pa.ArrowException, OSError) as error:
            raise BundleRefused(
                "malformed", f"The file {file.name} is not Parquet ({type(error).__name__})."
            ) from error
        schema = parquet.schema_arrow
        for name, kind in types.items():
            if name not in schema.names or schema.field(name).type != kind:
                raise BundleRefused(
                    "malformed", f"The file {file.name} does not have the columns of its role."
                )
        if parquet.metadata.num_rows != file.rows:
            raise BundleRefused(
                "malformed", f"The file {file.name} does not have {file.rows} rows."
            )
        _check_bounds(file.name, parquet.metadata, list(types))
        return parquet


def _check_bounds(name: str, metadata: Any, columns: Sequence[str]) -> None:
    """Raise BundleRefused where a part of a file takes more memory than any bundler writes."""
    for group_index in range(metadata.num_row_groups):
        group = metadata.row_group(group_index)
        parts = [group.column(index) for index in range(group.num_columns)]
        parts_to_read = [part for part in parts if part.path_in_schema in columns]
        is_plain = all(_PLAIN.issuperset(part.encodings) for part in parts_to_read)
        size = sum(part.total_uncompressed_size for part in parts)
        if not is_plain or group.num_rows > GROUP_ROWS_MAX or not 0 <= size <= GROUP_BYTES_MAX:
            raise BundleRefused(
                "bomb", f"The file {name} would take more memory than a bundle's file may."
            )


def restore(bundle: Bundle, catalog: Catalog | None = None) -> BundleState:
    """Return the state that a bundle holds, once its digests equal those of the manifest.

    Its `changed` counts from this bundle, so that a delta can be written on it. Raises
    BundleRefused, Unavailable.
    """
    manifest = bundle.manifest
    state = BundleState(len(manifest.partitions), catalog or bundle.catalog(), logs=manifest.logs)
    for batch in bundle.record_batches():
        columns = [batch.column(name).to_pylist() for name in ("member_id", "record", "damaged")]
        for member, record, damaged in zip(*columns, strict=True):
            state.put(member.encode(), record, damaged=damaged)
    for control in bundle.controls():
        state.apply_control(control)
    for (topic, partition), position in bundle.positions.items():
        state.move(topic, partition, position)
    for summary in manifest.partitions:
        if summary.tainted:
            state.freshness.tainted.add(summary.partition)
        if summary.frontier is not None:
            state.freshness.apply(summary.frontier)
    state.settle_frontiers()
    state.mark()
    if state.digests() != [summary.digest for summary in manifest.partitions]:
        raise BundleRefused(
            "malformed", "The records of the bundle do not have the digests of its manifest."
        )
    return state
