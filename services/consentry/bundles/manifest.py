"""The texts of a bundle: its manifest, its signature, and the pointer to the newest bundle.

Bytes are canonical (sorted keys, no spaces), so that there is one spelling of each: a repeated key
is not canonical either. They are read strictly: a member that is missing, unknown or of another
type is refused. docs/decisions/0009-bundles.md has the layout.

The reader is written by hand and not declared as a pydantic document: each refusal has its own
BundleRefused code, the values are the dataclasses that the writer fills, and what is refused does
not depend on another library's idea of an int.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from consentry.bundles.errors import BundleRefused
from consentry.bundles.keys import PublicKeys, SigningKey
from consentry.domain.values import Micros
from consentry.wire.frontiers import Frontier

MANIFEST_FORMAT: Final = "consentry-bundle/1"
POINTER_FORMAT: Final = "consentry-bundle-latest/1"
MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.sig"
POINTER_NAME: Final = "latest.jsonl"
MANIFEST_BYTES_MAX: Final = 4 << 20
SIGNATURE_BYTES_MAX: Final = 1024
POINTER_BYTES_MAX: Final = 16 << 10
FILE_BYTES_MAX: Final = 1 << 30
DELTAS_MAX: Final = 256
"""A chain has at most this many deltas; then a snapshot is due."""
NUMBER_MAX: Final = 1 << 62

Kind = Literal["snapshot", "delta"]
Role = Literal["records", "controls", "exclusions", "inclusions"]
_KINDS: Final[tuple[Kind, ...]] = ("snapshot", "delta")
_ROLES: Final[tuple[Role, ...]] = ("records", "controls", "exclusions", "inclusions")

BUNDLE_ID_PATTERN: Final = re.compile(r"[0-9]{10}-[a-z]{5,8}-[0-9a-f]{16}", re.ASCII)
FILE_NAME_PATTERN: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,150}", re.ASCII)
"""No slash, no backslash, no two dots: nothing that leads out of a directory, on any system."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LOG: Final = re.compile(r"[0-9a-f]{0,64}", re.ASCII)
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_ANY: Final = re.compile(r".{0,256}", re.DOTALL)
_SIGNATURE_LENGTH: Final = 64

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """One file in a bundle's manifest: its bytes, its SHA-256, its rows or members.

    `purpose` is that of a set.
    """

    name: str
    role: Role
    size: int
    sha256: str
    rows: int
    purpose: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSummary:
    """One partition in a bundle's manifest: the contents after this bundle was read.

    All bundles before it in its chain were read too.

    `records_offset` is the next offset of records to read. `digest` is the sum of
    `records.record_digest` over the records, as Snapshot.digests() has it. `frontier` is the one
    that counted; None where nothing was proven.
    """

    partition: int
    records_offset: int
    members: int
    damaged: int
    digest: str
    tainted: bool
    frontier: Frontier | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The bundle on which a delta in a bundle's manifest builds, by its manifest's SHA-256."""

    bundle_id: str
    sequence: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a bundle: its contents, and the offsets up to which the log was read.

    Times in microseconds since 1970-01-01 UTC, offsets exclusive. `logs` tells the topics `records`
    and `controls` from others of the same name (kafka.log_identity, hexadecimal): whoever follows
    on from the offsets has to find the same. `schema_ids` are the ids that frames carry, by schema
    name.
    """

    bundle_id: str
    kind: Kind
    sequence: int
    deltas: int
    """The number of deltas since its snapshot, itself included; 0 for a snapshot."""
    parent: Parent | None
    created_at: Micros
    namespace: str
    logs: Mapping[str, str]
    partitions: tuple[PartitionSummary, ...]
    controls_offset: int
    controls_count: int
    newest_policy: str | None
    purposes: tuple[str, ...]
    schema_ids: Mapping[str, tuple[int, ...]]
    files: tuple[BundleFile, ...]
    sha256: str = field(default="", compare=False)
    """The SHA-256 of its bytes, by which a delta names it; set when these were read or written."""
    signed_by: str = field(default="", compare=False)
    """The id of the key that its signature was checked with; empty if it was written here."""

    @property
    def proven_at(self) -> Micros:
        """The time up to which all that was recorded is in the bundle.

        0 without a frontier.
        """
        proven_at = self.created_at
        for summary in self.partitions:
            frontier_at = Micros(0)
            if summary.frontier is not None:
                frontier_at = summary.frontier.frontier_at
            proven_at = min(proven_at, frontier_at)
        return proven_at

    @property
    def members(self) -> int:
        """The number of members with a record in the bundle."""
        return sum(summary.members for summary in self.partitions)

    @property
    def tainted(self) -> frozenset[int]:
        """The bundle's partitions that allow nothing: some event's key was unreadable."""
        return frozenset(summary.partition for summary in self.partitions if summary.tainted)

    def with_role(self, role: Role) -> tuple[BundleFile, ...]:
        """Return the files of one role in the bundle, in order."""
        return tuple(file for file in self.files if file.role == role)

    def as_parent(self) -> Parent:
        """Return the parent that a delta on this bundle names."""
        return Parent(bundle_id=self.bundle_id, sequence=self.sequence, manifest_sha256=self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The signed pointer to the newest bundle of a store.

    The manifest's SHA-256 makes a good entity tag.
    """

    namespace: str
    bundle_id: str
    sequence: int
    manifest_sha256: str
    created_at: Micros


# ---- bytes


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a bundle's manifest as its canonical bytes."""
    parent: dict[str, Any] | None = None
    if manifest.parent is not None:
        parent = _plain(manifest.parent)
    return canonical(
        {
            "format": MANIFEST_FORMAT,
            "bundle_id": manifest.bundle_id,
            "kind": manifest.kind,
            "sequence": manifest.sequence,
            "deltas": manifest.deltas,
            "parent": parent,
            "created_at": manifest.created_at,
            "namespace": manifest.namespace,
            "logs": dict(manifest.logs),
            "partitions": [_summary_fields(summary) for summary in manifest.partitions],
            "controls_offset": manifest.controls_offset,
            "controls_count": manifest.controls_count,
            "newest_policy": manifest.newest_policy,
            "purposes": list(manifest.purposes),
            "schema_ids": {name: list(ids) for name, ids in manifest.schema_ids.items()},
            "files": [_plain(file) for file in manifest.files],
        }
    )


def pointer_bytes(pointer: Pointer, key: SigningKey) -> bytes:
    """Return the pointer to the newest bundle as two lines: the signed text, and its signature.

    They are one object, as a store replaces one object at once.
    """
    content = canonical({"format": POINTER_FORMAT, **_plain(pointer)})
    return content + b"\n" + signature_bytes(content, key)


def signature_bytes(content: bytes, key: SigningKey) -> bytes:
    """Return the text of a bundle's signature over exactly `content`."""
    signature = base64.b64encode(key.sign(content)).decode()
    return canonical({"algorithm": "Ed25519", "key_id": key.key_id, "signature": signature}) + b"\n"


def read_manifest(content: bytes, signature: bytes | None, keys: PublicKeys) -> Manifest:
    """Return the bundle's manifest in these bytes, once its signature is checked.

    Raises BundleRefused.
    """
    signed_by = check_signature("manifest", content, signature, keys)
    fields = StrictObject(_parsed("manifest", content), "the manifest")
    if fields.text("format") != MANIFEST_FORMAT:
        raise _malformed("the manifest is of a format that is not known here")
    manifest = _manifest(fields, hashlib.sha256(content).hexdigest(), signed_by)
    fields.end()
    return manifest


def read_pointer(content: bytes, keys: PublicKeys) -> Pointer:
    """Return the pointer to the newest bundle in these bytes, once its signature is checked.

    Raises BundleRefused.
    """
    signed, _, signature = content.partition(b"\n")
    check_signature("pointer", signed, signature or None, keys)
    fields = StrictObject(_parsed("pointer", signed), "the pointer")
    if fields.text("format") != POINTER_FORMAT:
        raise _malformed("the pointer is of a format that is not known here")
    pointer = Pointer(
        namespace=fields.text("namespace"),
        bundle_id=fields.text("bundle_id", BUNDLE_ID_PATTERN),
        sequence=fields.number("sequence"),
        manifest_sha256=fields.text("manifest_sha256", _SHA256),
        created_at=Micros(fields.number("created_at")),
    )
    fields.end()
    return pointer


def check_signature(what: str, content: bytes, signature: bytes | None, keys: PublicKeys) -> str:
    """Return the id of the key that signed exactly this text of a bundle.

    Raises BundleRefused.
    """
    if not signature:
        raise BundleRefused("unsigned", f"The {what} of the bundle is not signed.")
    fields = StrictObject(_parsed("signature", signature.removesuffix(b"\n")), "the signature")
    key_id = fields.text("key_id", _KEY_ID)
    try:
        raw = base64.b64decode(fields.text("signature"), validate=True)
    except binascii.Error:
        raw = b""
    if fields.text("algorithm") != "Ed25519" or len(raw) != _SIGNATURE_LENGTH:
        raise _malformed("the signature is not one of Ed25519")
    fields.end()
    if key_id not in keys:
        raise BundleRefused(
            "key_unknown",
            f"The {what} of the bundle is signed with the key {key_id}, which is not among those "
            "believed here.",
            fix="if the bundler's key was changed, add its new public key; otherwise somebody "
            "else made the bundle",
        )
    if not keys.verifies(key_id, raw, content):
        raise BundleRefused(
            "forged", f"The {what} of the bundle is not what the key {key_id} signed."
        )
    return key_id


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return the one spelling of a JSON value in a bundle's manifest, pointer or signature."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def _parsed(what: str, content: bytes) -> Any:
    try:
        value = json.loads(content)
        if canonical(value) == content:
            return value
    except (ValueError, TypeError, RecursionError) as error:
        raise _malformed(f"the {what} is not JSON ({type(error).__name__})") from None
    raise _malformed(f"the {what} is not spelled canonically")


def _malformed(detail: str) -> BundleRefused:
    return BundleRefused("malformed", f"A bundle cannot be read: {detail}.")


# ---- values to JSON and back


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _summary_fields(summary: PartitionSummary) -> dict[str, Any]:
    fields: dict[str, Any] = _plain(summary)
    if summary.frontier is not None:
        frontier = summary.frontier._asdict()
        fields["frontier"] = {name: frontier[name] for name in _FRONTIER_FIELDS}
    return fields


_FRONTIER_FIELDS: Final = (
    "generation",
    "frontier_at",
    "next_offset",
    "records_offset",
    "controls_offset",
    "log",
)
"""The fields of a frontier that stand in it; its partition and its taint stand beside it."""


class StrictObject:
    """A JSON object in a bundle's manifest, pointer or signature, each member of its own type.

    Its members are taken out one by one.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _malformed(f"{where} is not an object")
        self._left = dict(value)
        self._where = where

    def _take(self, name: str) -> Any:
        if name not in self._left:
            raise _malformed(f"{self._where} has no {name!r}")
        return self._left.pop(name)

    def _wrong(self, name: str) -> BundleRefused:
        return _malformed(f"{name!r} of {self._where} does not fit")

    def text(self, name: str, pattern: re.Pattern[str] = _ANY) -> str:
        value = self._take(name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise self._wrong(name)
        return value

    def text_or_none(self, name: str) -> str | None:
        if self._left.get(name, "") is None:
            self._take(name)
            return None
        return self.text(name)

    def number(self, name: str) -> int:
        value = self._take(name)
        if type(value) is not int or not 0 <= value < NUMBER_MAX:
            raise self._wrong(name)
        return value

    def truth(self, name: str) -> bool:
        value = self._take(name)
        if type(value) is not bool:
            raise self._wrong(name)
        return value

    def many(self, name: str, read: Callable[[Any], _Value]) -> tuple[_Value, ...]:
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name)
        return tuple(map(read, value))

    def mapping(self, name: str, read: Callable[[Any], _Value]) -> dict[str, _Value]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name)
        return {key: read(item) for key, item in value.items()}

    def object_or_none(self, name: str, read: Callable[[StrictObject], _Value]) -> _Value | None:
        value = self._take(name)
        if value is None:
            return None
        fields = StrictObject(value, f"{name!r} of {self._where}")
        result = read(fields)
        fields.end()
        return result

    def end(self) -> None:
        if self._left:
            raise _malformed(
                f"{self._where} has {sorted(self._left)[0][:40]!r}, which is not known here"
            )


def _text(value: Any) -> str:
    return StrictObject({"item": value}, "a list").text("item")


def _log_identity(value: Any) -> str:
    return StrictObject({"item": value}, "logs").text("item", _LOG)


def _numbers(value: Any) -> tuple[int, ...]:
    return StrictObject({"items": value}, "schema_ids").many("items", _number)


def _number(value: Any) -> int:
    return StrictObject({"item": value}, "schema_ids").number("item")


def _manifest(fields: StrictObject, sha256: str, signed_by: str) -> Manifest:
    kind = fields.text("kind")
    if kind not in _KINDS:
        raise _malformed("its kind is not known here")
    parent = fields.object_or_none("parent", _parent)
    deltas = fields.number("deltas")
    is_delta = kind == "delta"
    if is_delta != (parent is not None) or is_delta != (deltas > 0):
        raise _malformed("a delta has a parent, and only a delta")
    partitions = fields.many("partitions", _partition)
    numbers = [summary.partition for summary in partitions]
    if not partitions or numbers != list(range(len(partitions))):
        raise _malformed("its partitions are not numbered from 0 on")
    files = fields.many("files", _file)
    names = {file.name for file in files}
    if len(names) < len(files):
        raise _malformed("two of its files have one name")
    return Manifest(
        bundle_id=fields.text("bundle_id", BUNDLE_ID_PATTERN),
        kind=_KINDS[_KINDS.index(kind)],
        sequence=fields.number("sequence"),
        deltas=deltas,
        parent=parent,
        created_at=Micros(fields.number("created_at")),
        namespace=fields.text("namespace"),
        logs=fields.mapping("logs", _log_identity),
        partitions=partitions,
        controls_offset=fields.number("controls_offset"),
        controls_count=fields.number("controls_count"),
        newest_policy=fields.text_or_none("newest_policy"),
        purposes=fields.many("purposes", _text),
        schema_ids=fields.mapping("schema_ids", _numbers),
        files=files,
        sha256=sha256,
        signed_by=signed_by,
    )


def _parent(fields: StrictObject) -> Parent:
    return Parent(
        bundle_id=fields.text("bundle_id", BUNDLE_ID_PATTERN),
        sequence=fields.number("sequence"),
        manifest_sha256=fields.text("manifest_sha256", _SHA256),
    )


def _partition(value: Any) -> PartitionSummary:
    fields = StrictObject(value, "a partition")
    partition, tainted = fields.number("partition"), fields.truth("tainted")

    def frontier(frontier_fields: StrictObject) -> Frontier:
        return Frontier(
            partition=partition,
            generation=frontier_fields.text("generation"),
            frontier_at=Micros(frontier_fields.number("frontier_at")),
            next_offset=frontier_fields.number("next_offset"),
            records_offset=frontier_fields.number("records_offset"),
            controls_offset=frontier_fields.number("controls_offset"),
            tainted=tainted,
            log=frontier_fields.text("log", _LOG),
        )

    summary = PartitionSummary(
        partition=partition,
        records_offset=fields.number("records_offset"),
        members=fields.number("members"),
        damaged=fields.number("damaged"),
        digest=fields.text("digest", _DIGEST),
        tainted=tainted,
        frontier=fields.object_or_none("frontier", frontier),
    )
    fields.end()
    return summary


def _file(value: Any) -> BundleFile:
    fields = StrictObject(value, "a file")
    name = fields.text("name")
    if FILE_NAME_PATTERN.fullmatch(name) is None or name in (MANIFEST_NAME, SIGNATURE_NAME):
        raise BundleRefused(
            "file_name", "The manifest names a file that would not lie in the bundle's directory."
        )
    role = fields.text("role")
    if role not in _ROLES:
        raise _malformed("a file's role is not known here")
    file = BundleFile(
        name=name,
        role=_ROLES[_ROLES.index(role)],
        size=fields.number("size"),
        sha256=fields.text("sha256", _SHA256),
        rows=fields.number("rows"),
        purpose=fields.text("purpose"),
    )
    fields.end()
    if file.size > FILE_BYTES_MAX:
        raise BundleRefused(
            "too_large", f"A file of the bundle has {file.size} bytes, more than are read."
        )
    return file
