"""Open a bundle: believe nothing that its bundler did not sign, and hand out only bytes that were
checked.

A file is read into memory whole, checked, and then read from there: what was checked is what is
used, whoever may write to the store meanwhile.
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
from consentry.wire.freshness import BUNDLE_CLOCKS_SECONDS_MAX, Positions
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
"""Encodings by which no value stands for many: what is decoded is not larger than what the file
says it is.
"""


def latest(store: BundleStore, keys: PublicKeys) -> Pointer:
    """Which bundle is the newest, as its bundler signed it. Raises BundleRefused, Unavailable."""
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
    """The newest bundle of a store, or the one named, with its chain; manifests are checked, files
    as they are read.

    `namespace` None takes any. `max_age_seconds` bounds how long ago everything was proven fresh
    (`Manifest.proven_at`). `least_sequence` is that of the newest bundle seen before: an older one
    is a roll-back. Raises BundleRefused (codes: errors.CODES); Unavailable where the store does not
    answer or holds no bundle.
    """
    place = store if isinstance(store, BundleStore) else BundleStore(store)
    if bundle_id is None:
        pointer = latest(place, keys)
        newest = _manifest(place, pointer.bundle_id, keys)
        told = (pointer.manifest_sha256, pointer.sequence, pointer.namespace)
        if told != (newest.sha256, newest.sequence, newest.namespace):
            raise BundleRefused(
                "altered", "The newest bundle is not the one that the pointer names."
            )
    else:
        newest = _manifest(place, bundle_id, keys)
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
    return Bundle(place, _chain(place, newest, keys))


def _check_age(newest: Manifest, now: Micros, max_age_seconds: float | None) -> None:
    age = (now - newest.created_at) / 1e6
    if age < -BUNDLE_CLOCKS_SECONDS_MAX:
        raise BundleRefused(
            "from_the_future",
            f"The bundle was made {-age:.0f} s from now: it would not grow old in time.",
            fix="set the clocks of this machine and of the bundler's",
        )
    proven = (now - newest.proven_at) / 1e6 if newest.proven_at > 0 else math.inf
    if max_age_seconds is not None and not proven <= max_age_seconds:
        detail = "never, for some partition" if math.isinf(proven) else f"{proven:.0f} s ago"
        raise BundleRefused(
            "expired",
            f"The bundle was proven fresh {detail}; the bound is {max_age_seconds:g} s.",
            fix="check that the bundler and the processor run, or have a bundle built",
        )


def _manifest(store: BundleStore, bundle_id: str, keys: PublicKeys) -> Manifest:
    """The manifest in a bundle's directory. Raises BundleRefused, Unavailable."""
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
    """The manifests from the snapshot to the newest one, each the very one that the next names."""
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
    ours = (
        parent.namespace,
        dict(parent.logs),
        len(parent.partitions),
        parent.purposes,
        parent.tainted,
    )
    if ours != (
        child.namespace,
        dict(child.logs),
        len(child.partitions),
        child.purposes,
        child.tainted,
    ):
        raise BundleRefused(
            "foreign", f"The delta {child.bundle_id} is of other topics than its parent."
        )
    went_on = all(
        after.records_offset >= before.records_offset
        for before, after in zip(parent.partitions, child.partitions, strict=True)
    )
    counts = (child.sequence, child.deltas) == (parent.sequence + 1, parent.deltas + 1)
    if not (went_on and counts and child.controls_offset >= parent.controls_offset):
        raise BundleRefused(
            "chain", f"The delta {child.bundle_id} does not go on from where its parent ends."
        )


class Bundle:
    """A bundle and those it builds on, `manifests[0]` the snapshot; what follows replaces what came
    before.
    """

    def __init__(self, store: BundleStore, manifests: tuple[Manifest, ...]) -> None:
        self.manifests = manifests
        self._store = store

    @property
    def manifest(self) -> Manifest:
        """The newest."""
        return self.manifests[-1]

    @property
    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset per (short topic name, partition) of records and controls: where to follow
        on.
        """
        found = {(RECORDS, one.partition): one.records_offset for one in self.manifest.partitions}
        return found | {(CONTROLS, 0): self.manifest.controls_offset}

    def record_batches(
        self, *, batch_rows: int = BATCH_ROWS, columns: Sequence[str] | None = tuple(_RECORD_TYPES)
    ) -> Iterator[pa.RecordBatch]:
        """Rows of all records, the snapshot's first, then each delta's: for one member the last row
        counts.

        Columns: partition (int32), member_id (string), version (int64), record (binary; null: no
        record), damaged (bool: the member stays quarantined by the reader), or some of them; None:
        also those for people. Raises BundleRefused, Unavailable.
        """
        for manifest in self.manifests:
            for file in manifest.with_role("records"):
                parquet = self._parquet(manifest, file, _RECORD_TYPES)
                names = None if columns is None else list(columns)
                yield from parquet.iter_batches(
                    batch_size=batch_rows, columns=names, use_threads=False
                )

    def controls(self) -> list[StoredControl]:
        """The messages of all controls in log order; `read_control_or_pause` reads them.

        As `record_batches` raises.
        """
        found: list[StoredControl] = []
        for manifest in self.manifests:
            for file in manifest.with_role("controls"):
                table = self._parquet(manifest, file, _CONTROL_TYPES).read(
                    columns=list(_CONTROL_TYPES), use_threads=False
                )
                rows = zip(
                    *(table.column(name).to_pylist() for name in _CONTROL_TYPES), strict=True
                )
                found += [
                    StoredControl(offset, Micros(appended_at), value)
                    for offset, appended_at, value in rows
                ]
        offsets = [one.offset for one in found]
        if len(found) != self.manifest.controls_count or any(
            later <= earlier for earlier, later in pairwise(offsets)
        ):
            raise BundleRefused("malformed", "The controls of the bundle are not those of a log.")
        return found

    def own_exclusions(self, purpose: str) -> Any:
        """The members with integer ids whom their own facts exclude from a purpose, a pyroaring
        BitMap64.

        It is not the whole decision: pauses, policies and rows exclude others. Needs the extra
        `bundler`. Raises Refused for a purpose that no policy of the bundle names; as
        `record_batches`.
        """
        if purpose not in self.manifest.purposes:
            raise Refused(
                f"The bundle has no set for the purpose {purpose[:80]!r}.",
                code="bundle.purpose",
                fix="ask for one of "
                f"{', '.join(self.manifest.purposes)[:300] or 'none: no policy was published'}",
            )
        found: Any = read_set(b"\0" * 8)
        roles: tuple[Role, ...] = ("inclusions", "exclusions")
        for manifest in self.manifests:
            for role in roles:
                for file in (one for one in manifest.with_role(role) if one.purpose == purpose):
                    one = read_set(self._checked(manifest, file))
                    found = found - one if role == "inclusions" else found | one
        return found

    def catalog(self) -> Catalog:
        """The schema ids that the bundle's frames carry, without a registry."""
        return catalog_of_ids(self.manifest.schema_ids)

    def check_files(self) -> int:
        """Read and check every file of the chain; how many bytes they have.

        Raises BundleRefused, Unavailable.
        """
        return sum(
            len(self._checked(manifest, file))
            for manifest in self.manifests
            for file in manifest.files
        )

    def _checked(self, manifest: Manifest, file: BundleFile) -> bytes:
        """The bytes of a file, which are the ones that were signed for."""
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
        """The file, once it is known that decoding these columns of it stays within bounds."""
        content = self._checked(manifest, file)
        try:
            parquet = pq.ParquetFile(pa.BufferReader(content))
        except (pa.ArrowException, OSError) as error:
            raise BundleRefused(
                "malformed", f"The file {file.name} is not Parquet ({type(error).__name__})."
            ) from error
        found = parquet.schema_arrow
        if any(
            name not in found.names or found.field(name).type != kind
            for name, kind in types.items()
        ):
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
    """Raise BundleRefused where some part of a file would take more memory than any bundler
    writes.
    """
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        parts = [group.column(number) for number in range(group.num_columns)]
        read = [part for part in parts if part.path_in_schema in columns]
        plain = all(_PLAIN.issuperset(part.encodings) for part in read)
        size = sum(part.total_uncompressed_size for part in parts)
        if not plain or group.num_rows > GROUP_ROWS_MAX or not 0 <= size <= GROUP_BYTES_MAX:
            raise BundleRefused(
                "bomb", f"The file {name} would take more memory than a bundle's file may."
            )


def restore(bundle: Bundle, catalog: Catalog | None = None) -> BundleState:
    """The state that a bundle holds, its digests compared with the manifest's.

    Raises BundleRefused, Unavailable.

    Its `changed` counts from this bundle, so that a delta can be written on it.
    """
    manifest = bundle.manifest
    state = BundleState(len(manifest.partitions), catalog or bundle.catalog(), logs=manifest.logs)
    for batch in bundle.record_batches():
        rows = (batch.column(name).to_pylist() for name in ("member_id", "record", "damaged"))
        for member, record, damaged in zip(*rows, strict=True):
            state.put(member.encode(), record, damaged=damaged)
    for control in bundle.controls():
        state.apply_control(control)
    positions: Positions = bundle.positions
    for (topic, partition), position in positions.items():
        state.move(topic, partition, position)
    for one in manifest.partitions:
        if one.tainted:
            state.freshness.tainted.add(one.partition)
        if one.frontier is not None:
            state.freshness.apply(one.frontier)
    state.settle_frontiers()
    state.mark()
    if state.digests() != [one.digest for one in manifest.partitions]:
        raise BundleRefused(
            "malformed", "The records of the bundle do not have the digests that it tells."
        )
    return state
