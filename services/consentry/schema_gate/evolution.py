"""Changes of an Avro schema that the gate allows: either version reads the other alike.

A registry checks readability, not meaning: with defaults everything stays readable, also a
withdrawal as a grant. Every version that was ever in use is kept as data,
`published/<Name>/<n>.avsc`, and `published/pins.json` lists the fingerprint of each for its topic.
One rule, one code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from consentry.domain.errors import Refused
from consentry.schema_gate.lint import Finding, is_fixed_width, lint_package, named_types
from consentry.schema_gate.published import (
    PINS,
    PUBLISHED,
    package_root,
    read_pins,
    read_published,
    read_schemas,
    read_topics,
)
from consentry.wire.schemas import MEMBER_EVENTS, RECORDS, canonical_fingerprint

_UNPUBLISHED: Final = "E13"
_MEANING: Final = ("pattern", "text")


class GateRefused(Refused):
    """Raised when schemas break rules of the schema gate: nothing was written or registered.

    `findings` says which.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        more = ""
        if len(findings) > 1:
            more = f", and {len(findings) - 1} more"
        super().__init__(
            f"The schemas break rules: {findings[0]}{more}.",
            code="schemas.gate",
            fix="see `consentry schemas lint` for all of them, and docs/schemas.md for how a "
            "schema is changed",
        )
        self.findings = tuple(findings)


def check_package(root: Traversable | None = None) -> list[Finding]:
    """Return what the whole schema gate finds in a data package (by default the installed one).

    It asks the lint, the evolution, and what was published.
    """
    root = root or package_root()
    findings = lint_package(root)
    codes = {finding.code for finding in findings}
    if "L21" in codes:
        return findings  # what is no schema cannot be compared
    findings += _compare_package(root)
    findings += _check_pins(root)
    return findings


def require_package(root: Traversable | None = None) -> None:
    """Pass only if the whole schema gate finds nothing; else raise GateRefused.

    The error carries the findings.
    """
    findings = check_package(root)
    if findings:
        raise GateRefused(findings)


def _compare_package(root: Traversable) -> Iterator[Finding]:
    current, topics = read_schemas(root), read_topics(root)
    member_events = topics.get(MEMBER_EVENTS, ())
    frozen = topics.get(RECORDS, ())
    for name, versions in read_published(root).items():
        if name not in current:
            yield Finding("E01", name, "was published and is gone; old logs could not be read")
            continue
        seen: set[Finding] = set()
        for number, old in enumerate(versions, start=1):
            findings = compare(
                old,
                current[name],
                is_member_event=name in member_events,
                is_frozen=name in frozen,
            )
            for finding in findings:
                if finding not in seen:
                    seen.add(finding)
                    yield finding._replace(detail=f"{finding.detail} (version {number})")


def _check_pins(root: Traversable) -> Iterator[Finding]:
    pins, published = read_pins(root), read_published(root)
    for topic, names in read_topics(root).items():
        for name in names:
            pinned = pins.get(topic, {}).get(name, [])
            if pinned != _fingerprints(published.get(name, ())):
                yield Finding(
                    "E12",
                    name,
                    f"is not listed for {topic} with the fingerprints of its published versions",
                )
    for name, text in read_schemas(root).items():
        versions = published.get(name, [])
        if not versions or versions[-1] != text:
            yield Finding(
                _UNPUBLISHED,
                name,
                "is not its last published version; run `consentry schemas publish`",
            )


def _fingerprint(schema: Mapping[str, Any]) -> str:
    """The canonical fingerprint of a schema that is given as parsed JSON."""
    return canonical_fingerprint(json.dumps(schema))


def _fingerprints(versions: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_fingerprint(version) for version in versions]


def publish(root: Path) -> list[Path]:
    """Freeze every Avro schema that differs from its last published version as the next.

    Returns the files written.

    Versions only ever grow: nothing published is changed. Raises GateRefused, with nothing written,
    if any other rule of the gate is broken.
    """
    findings = [finding for finding in check_package(root) if finding.code != _UNPUBLISHED]
    published = read_published(root)
    if findings:
        raise GateRefused(findings)
    written = []
    for name, text in read_schemas(root).items():
        versions = published.setdefault(name, [])
        if versions and versions[-1] == text:
            continue
        versions.append(text)
        source = root / "avro" / f"{name}.avsc"
        file = root / PUBLISHED / name / f"{len(versions)}.avsc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read_bytes())
        written.append(file)
    if written:
        pins: dict[str, dict[str, list[str]]] = {}
        for topic, names in sorted(read_topics(root).items()):
            pins[topic] = {name: _fingerprints(published[name]) for name in names}
        (root / PUBLISHED / PINS).write_text(json.dumps(pins, indent=2) + "\n", encoding="utf-8")
    return written


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    is_member_event: bool = False,
    is_frozen: bool = False,
) -> list[Finding]:
    """Return each change between two versions of a record schema that the schema gate refuses.

    `old` and `new` are parsed JSON.

    A member event is read by column: its head of fixed width and its last field stay what they are.
    A frozen record (the one that is read byte by byte, whatever its schema id) does not change at
    all but for words.
    """
    change = _Change(named_types(old), named_types(new), is_member_event)
    name = str(new["name"])
    findings = list(change.of_type(old, new, name))
    if is_frozen and _fingerprint(old) != _fingerprint(new):
        findings.append(
            Finding("E10", name, "is read byte by byte everywhere; its form does not change")
        )
    return findings


class _Change:
    """One comparison: both sides' named types, which stand for the names that the other side may
    spell out.
    """

    def __init__(
        self, old: Mapping[str, Any], new: Mapping[str, Any], is_member_event: bool
    ) -> None:
        self._old = old
        self._new = new
        self._is_member_event = is_member_event
        self._compared: set[str] = set()

    def of_type(self, old: Any, new: Any, where: str) -> Iterator[Finding]:
        """Return each difference between two types by which one would misread the other's bytes."""
        old, new = _plain(old, self._old), _plain(new, self._new)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for before, after in zip(old, new, strict=True):
                yield from self.of_type(before, after, where)
        elif isinstance(old, Mapping) and isinstance(new, Mapping) and old["type"] == new["type"]:
            yield from self._of_complex(old, new, where)
        elif old != new:
            yield Finding("E04", where, f"changes its type from {_told(old)} to {_told(new)}")

    def _of_complex(
        self, old: Mapping[str, Any], new: Mapping[str, Any], where: str
    ) -> Iterator[Finding]:
        kind = old["type"]
        if _short(old) != _short(new) or old.get("logicalType") != new.get("logicalType"):
            yield Finding("E04", where, f"changes its type from {_told(old)} to {_told(new)}")
        elif kind in ("array", "map"):
            inner = "items" if kind == "array" else "values"
            yield from self.of_type(old[inner], new[inner], where)
        elif kind == "enum":
            yield from _of_enum(old, new, where)
        elif kind == "fixed" and old["size"] != new["size"]:
            yield Finding(
                "E04", where, f"changes its size from {old['size']} to {new['size']} bytes"
            )
        elif kind == "record" and _short(old) not in self._compared:
            self._compared.add(_short(old))
            yield from self._of_fields(old["fields"], new["fields"], where)

    def _of_fields(
        self, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], where: str
    ) -> Iterator[Finding]:
        before = {field["name"]: field for field in old}
        after = {field["name"]: field for field in new}
        for name in before.keys() - after.keys():
            yield Finding(
                "E02", f"{where}.{name}", "is removed or renamed; facts in old logs would be lost"
            )
        for name in after.keys() - before.keys():
            if "default" not in after[name]:
                yield Finding(
                    "E09",
                    f"{where}.{name}",
                    "is new and has no default; old events could not be read",
                )
            elif _short_type(_plain(after[name]["type"], self._new)) in ("bytes", "fixed"):
                yield Finding(
                    "E14",
                    f"{where}.{name}",
                    "is new and of bytes; fastavro fills in text. Make it optional",
                )
        kept = [name for name in after if name in before]
        kept_before = [name for name in before if name in after]
        if kept != kept_before:
            yield Finding("E03", where, "has its fields in another order")
        elif self._is_member_event and self._moves_columns(old, new):
            yield Finding(
                "E03",
                where,
                "changes the fixed-width head or the end, by which whole batches are read",
            )
        for name in kept:
            yield from self._of_field(before[name], after[name], f"{where}.{name}")

    def _moves_columns(
        self, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Return True if the fixed-width head differs, or the last field."""
        if _head(old, self._old) != _head(new, self._new):
            return True
        return _last_name(old) != _last_name(new)

    def _of_field(
        self, old: Mapping[str, Any], new: Mapping[str, Any], where: str
    ) -> Iterator[Finding]:
        if _default(old) != _default(new):
            yield Finding(
                "E08", where, "changes its default; what was never said would mean something else"
            )
        if any(old.get(word) != new.get(word) for word in _MEANING):
            yield Finding(
                "E11", where, "changes its pattern; one side would refuse what the other sends"
            )
        yield from self.of_type(old["type"], new["type"], where)


def _of_enum(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Finding]:
    before, after = list(old["symbols"]), list(new["symbols"])
    gone = [symbol for symbol in before if symbol not in after]
    kept = [symbol for symbol in after if symbol in before]
    added = [symbol for symbol in after if symbol not in before]
    if gone:
        yield Finding(
            "E05", where, f"loses {', '.join(gone)}; what old logs say would become the default"
        )
    elif kept != before:
        yield Finding(
            "E06",
            where,
            "has its symbols in another order; whoever counts them reads another choice",
        )
    elif after != [*before[:-1], *added, before[-1]]:
        yield Finding(
            "E07", where, "has a new symbol elsewhere than just before its last one, UNKNOWN"
        )
    if old.get("default") != new.get("default"):
        yield Finding(
            "E08", where, "changes the enum's default; an unknown symbol would mean something else"
        )


def _default(field: Mapping[str, Any]) -> str:
    """A default in a form in which 1 and true differ, and no default differs from null."""
    if "default" not in field:
        return ""
    return json.dumps(field["default"])


def _plain(kind: Any, types: Mapping[str, Any]) -> Any:
    """A type without the ways of writing it: names resolved, {"type": "long"} as "long"."""
    while isinstance(kind, Mapping) and isinstance(kind["type"], Mapping | list):
        kind = kind["type"]
    if isinstance(kind, Mapping) and (kind["type"] in types or not kind.keys() - {"type", "doc"}):
        kind = kind["type"]
    if isinstance(kind, str):
        return types.get(kind, kind)
    return kind


def _short(kind: Mapping[str, Any]) -> str:
    return str(kind.get("name", "")).rpartition(".")[2]


def _short_type(kind: Any) -> str:
    if isinstance(kind, Mapping):
        return str(kind["type"])
    return str(kind)


def _told(kind: Any) -> str:
    if isinstance(kind, list):
        branches = ", ".join(map(_told, kind))
        return f"[{branches}]"
    if isinstance(kind, Mapping):
        return f"{kind['type']} {_short(kind)}".strip()
    return str(kind)


def _last_name(fields: Sequence[Mapping[str, Any]]) -> str:
    """The name of the last field; empty where there is no field."""
    if not fields:
        return ""
    return str(fields[-1]["name"])


def _head(fields: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> list[str]:
    """The names of the fields before the first one of variable length."""
    names: list[str] = []
    for field in fields:
        if not is_fixed_width(field, types):
            break
        names.append(field["name"])
    return names
