"""JSON Schema of documents that people write, for their editors: generated from the models."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel


def editor_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a document that people write, as their editor reads it.

    It is for a file.

    Definitions are called as their model is, without "Document".
    """
    schema = model.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**head, **_renamed(_without_titles(schema))}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a written document's field that may be null too.

    Null is no default worth showing.
    """
    rest = dict(schema)
    default = rest.pop("default", None)
    if "enum" in rest:
        rest["enum"] = [*rest["enum"], None]
    elif "type" in rest:
        rest["type"] = [rest["type"], "null"]
    elif "$ref" in rest:
        rest["anyOf"] = [{"$ref": rest.pop("$ref")}, {"type": "null"}]
    if default is not None:
        rest["default"] = default
    return rest


def _without_titles(schema: Any) -> Any:
    """Return a schema without the titles that are only the fields' names once more."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_title = isinstance(schema.get("title"), str)
    return {
        key: _without_titles(value)
        for key, value in schema.items()
        if not (is_title and key == "title")
    }


def _renamed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose definitions are called as in the text: PauseDocument is pause."""
    text = json.dumps(schema)
    for name in schema["$defs"]:
        short = name.removesuffix("Document")
        text = text.replace(f'"{name}"', f'"{short[0].lower()}{short[1:]}"')
        text = text.replace(f'/{name}"', f'/{short[0].lower()}{short[1:]}"')
    renamed: dict[str, Any] = json.loads(text)
    return renamed
