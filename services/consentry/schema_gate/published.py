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
    entries = sorted((root / "avro").iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".avsc"): json.loads(entry.read_text(encoding="utf-8"))
        for entry in entries
        if entry.name.endswith(".avsc")
    }


def read_topics(root: Traversable) -> dict[str, list[str]]:
    """The records that each topic of a package may carry, as the schema gate checks them.

    By the topic's short name.
    """
    yaml = YAML(typ="safe")
    entries = sorted((root / "topics").iterdir(), key=lambda entry: entry.name)
    found = [
        yaml.load(entry.read_text(encoding="utf-8"))
        for entry in entries
        if entry.name.endswith(".yaml")
    ]
    return {topic["name"]: list(topic["records"]) for topic in found}


def read_published(root: Traversable) -> dict[str, list[dict[str, Any]]]:
    """Every published version of each Avro schema in a package, for the schema gate.

    Oldest first; versions count from 1 without gaps.
    """
    folder = root / PUBLISHED
    if not folder.is_dir():
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            count = sum(one.name.endswith(".avsc") for one in entry.iterdir())
            texts = [entry / f"{number}.avsc" for number in range(1, count + 1)]
            found[entry.name] = [
                json.loads(text.read_text(encoding="utf-8")) for text in texts if text.is_file()
            ]
            if len(found[entry.name]) != count:
                raise Refused(
                    f"The published versions of {entry.name} are not numbered 1 to {count}.",
                    code="schemas.published",
                    fix="restore the missing file of schemas/consentry_schemas/published from "
                    "version control",
                )
    return found


def read_pins(root: Traversable) -> dict[str, dict[str, list[str]]]:
    """Fingerprints of the published schema versions, oldest first, by topic and record."""
    file = root / PUBLISHED / PINS
    found: dict[str, dict[str, list[str]]] = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    )
    return found
