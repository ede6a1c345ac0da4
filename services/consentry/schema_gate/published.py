"""Files of a package of schemas that the schema gate checks: schemas, topics, old versions.

The package may be one that is not installed.

The running system reads the installed one through schemas.py.
"""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from ruamel.yaml import YAML

from consentry.domain.errors import Refused

PUBLISHED: Final = "published"
PINS: Final = "pins.json"


def package_root() -> Traversable:
    """The folder of the installed data package: the schemas and topics that the gate checks."""
    return files("consentry_schemas")


def read_schemas(root: Traversable) -> dict[str, dict[str, Any]]:
    """The parsed JSON of every schema file of a package that the schema gate checks, by name.

    The name is the file's, without its ending.
    """
    schemas: dict[str, dict[str, Any]] = {}
    for file in _files(root / "avro", ".avsc"):
        name = file.name.removesuffix(".avsc")
        schemas[name] = json.loads(file.read_text(encoding="utf-8"))
    return schemas


def read_topics(root: Traversable) -> dict[str, list[str]]:
    """The records that each topic of a package may carry, as the schema gate checks them.

    By the topic's short name.
    """
    yaml = YAML(typ="safe")
    records: dict[str, list[str]] = {}
    for file in _files(root / "topics", ".yaml"):
        topic = yaml.load(file.read_text(encoding="utf-8"))
        records[topic["name"]] = list(topic["records"])
    return records


def _files(folder: Traversable, ending: str) -> list[Traversable]:
    """The entries of a folder whose names have this ending, by name."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [entry for entry in entries if entry.name.endswith(ending)]


def read_published(root: Traversable) -> dict[str, list[dict[str, Any]]]:
    """Every published version of each Avro schema in a package, for the schema gate.

    Oldest first; versions count from 1 without gaps.
    """
    folder = root / PUBLISHED
    if not folder.is_dir():
        return {}
    published: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            published[entry.name] = _read_versions(entry)
    return published


def _read_versions(folder: Traversable) -> list[dict[str, Any]]:
    """The published versions of one schema, oldest first. Raises Refused if one is missing."""
    count = len(_files(folder, ".avsc"))
    versions: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        file = folder / f"{number}.avsc"
        if file.is_file():
            versions.append(json.loads(file.read_text(encoding="utf-8")))
    if len(versions) != count:
        raise Refused(
            f"The published versions of {folder.name} are not numbered 1 to {count}.",
            code="schemas.published",
            fix="restore the missing file of schemas/consentry_schemas/published from version "
            "control",
        )
    return versions


def read_pins(root: Traversable) -> dict[str, dict[str, list[str]]]:
    """Fingerprints of the published schema versions, oldest first, by topic and record."""
    file = root / PUBLISHED / PINS
    if not file.is_file():
        return {}
    pins: dict[str, dict[str, list[str]]] = json.loads(file.read_text(encoding="utf-8"))
    return pins
