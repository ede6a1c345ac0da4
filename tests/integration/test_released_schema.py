"""A field that MemberReleased gained: what was written without it stays readable, and the other way
round.
"""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest
from tests.stack import World

from consentry.domain.errors import Refused
from consentry.wire.schemas import Schema, schema

pytestmark = pytest.mark.stack


def without(text: str, field: str) -> Any:
    """A schema's JSON without one of its fields."""
    found = json.loads(text)
    kept = [one for one in found["fields"] if one["name"] != field]
    assert len(kept) == len(found["fields"]) - 1
    return found | {"fields": kept}


RELEASE = {
    "event_id": bytes(16),
    "effective_at": 1_704_067_200_000_000,
    "recorded_at": 1_704_067_200_000_000,
    "source": "desk",
    "member_id": "anna",
}


def test_releases_are_readable_across_the_field_that_was_added(bare: World) -> None:
    """Deployed one after the other, a desk and a processor have different schemas for an hour."""
    known = schema("MemberReleased")
    earlier = without(known.text, "observed_version")
    subject = f"{bare.namespace}.released-value"
    bare.registry.register(subject, Schema("MemberReleased", json.dumps(earlier), None, ""))
    bare.registry.set_compatibility(subject, "FULL_TRANSITIVE")
    bare.registry.register(subject, known)

    old, new = fastavro.parse_schema(earlier), fastavro.parse_schema(json.loads(known.text))
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, old, RELEASE)
    found: Any = fastavro.schemaless_reader(io.BytesIO(buffer.getvalue()), old, new)
    assert found["observed_version"] is None
    again: Any = fastavro.schemaless_reader(
        io.BytesIO(known.encode(RELEASE | {"observed_version": 7})), new, old
    )
    assert again == RELEASE


def test_the_registry_would_refuse_the_field_without_its_default(bare: World) -> None:
    """Hurt when this breaks: whoever trusts the test above; the level has to be in force for it to
    say anything.
    """
    known = schema("MemberReleased")
    subject = f"{bare.namespace}.released-value"
    earlier = json.dumps(without(known.text, "observed_version"))
    bare.registry.register(subject, Schema("MemberReleased", earlier, None, ""))
    bare.registry.set_compatibility(subject, "FULL_TRANSITIVE")
    bad = json.loads(known.text)
    bad["fields"] = [
        {
            name: value
            for name, value in one.items()
            if (one["name"], name) != ("observed_version", "default")
        }
        for one in bad["fields"]
    ]
    with pytest.raises(Refused):
        bare.registry.register(subject, Schema("MemberReleased", json.dumps(bad), None, ""))
