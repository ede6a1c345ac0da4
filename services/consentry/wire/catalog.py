"""Schema ids of a registry, pinned to our schemas: which id means which record, and nothing
else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from consentry.domain.errors import Refused, Unavailable, UndecodableEvent
from consentry.wire.frames import frame
from consentry.wire.schemas import Schema, canonical_fingerprint, schemas, subject, topics

REGISTRY_CALLS_PER_SECOND_MAX: Final = 10
UNKNOWN_IDS_MAX: Final = 10_000
AWAY_SECONDS: Final = 30.0


class Registry(Protocol):
    """A schema registry, in the words of what we ask it."""

    def register(self, subject: str, schema: Schema) -> int:
        """Register the schema under the subject and return its id. Raises Refused, Unavailable."""
        ...

    def find(self, subject: str, schema: Schema) -> int | None:
        """The id of exactly this schema under the subject, or None. Raises Unavailable."""
        ...

    def text(self, schema_id: int) -> str | None:
        """The schema text behind an id, or None where there is none. Raises Unavailable."""
        ...

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set the subject's compatibility level. Raises Unavailable."""
        ...


class InMemoryRegistry:
    """A registry in this process: same contract, nothing kept."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._subjects: dict[str, dict[str, int]] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """See Registry."""
        ids = self._subjects.setdefault(subject, {})
        if schema.text not in ids:
            if schema.text not in self._texts:
                self._texts.append(schema.text)
            ids[schema.text] = self._texts.index(schema.text) + 1
        return ids[schema.text]

    def find(self, subject: str, schema: Schema) -> int | None:
        """See Registry."""
        return self._subjects.get(subject, {}).get(schema.text)

    def text(self, schema_id: int) -> str | None:
        """See Registry."""
        return self._texts[schema_id - 1] if 0 < schema_id <= len(self._texts) else None

    def set_compatibility(self, subject: str, level: str) -> None:
        """See Registry; nothing here evolves."""


class Catalog:
    """Schema ids in both directions, filled before anything is consumed.

    `writing` ids come from the registry once. A reader's unknown id is looked up at most ten times
    a second, and accepted only if its canonical form is one of ours: an id of another schema could
    read a withdrawal as a grant.
    """

    def __init__(self, registry: Registry, ids: Mapping[str, int]) -> None:
        self._registry = registry
        self._ids = dict(ids)
        self._names = {schema_id: name for name, schema_id in ids.items()}
        self._unknown: set[int] = set()
        self._lock = threading.Lock()
        self._second = 0
        self._calls = 0
        self._away_until = 0.0
        self.away_seconds = AWAY_SECONDS
        """How long a registry that did not answer is left alone."""
        self._pinned = {known.fingerprint: name for name, known in schemas().items()}

    def frame_of(self, name: str) -> bytes:
        """The frame to write before Avro bytes of this record."""
        return frame(self._ids[name])

    def id_of(self, name: str) -> int:
        """The schema id that this record is written with."""
        return self._ids[name]

    def ids_of(self, name: str) -> tuple[int, ...]:
        """Every id known so far to mean this record."""
        return tuple(schema_id for schema_id, known in self._names.items() if known == name)

    def ids_for(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Every id known so far to mean these records, by name: what `catalog_of_ids` takes."""
        return {name: tuple(sorted(self.ids_of(name))) for name in sorted(names)}

    def name_of(self, schema_id: int, *, allowed: Iterable[str]) -> str:
        """The record that an id means, if the topic may carry it. Raises UndecodableEvent."""
        name = self._names.get(schema_id) or self._look_up(schema_id)
        if name not in allowed:
            raise UndecodableEvent(
                "wrong_type", f"Schema id {schema_id} is {name}, which this topic does not carry."
            )
        return name

    def _look_up(self, schema_id: int) -> str:
        refusal = UndecodableEvent(
            "schema_id", f"Schema id {schema_id} is not one of the pinned schemas."
        )
        with self._lock:
            if (
                schema_id in self._unknown
                or time.monotonic() < self._away_until
                or not self._may_call()
            ):
                raise refusal
            try:
                text = self._registry.text(schema_id)
            except Unavailable:
                # Asking again at once for each event would make the hot path wait for a registry
                # that hangs.
                self._away_until = time.monotonic() + self.away_seconds
                # not remembered: the registry may know it later, the member is quarantined till
                # then
                raise refusal from None
            try:
                name = None if text is None else self._pinned.get(canonical_fingerprint(text))
            except Exception:  # noqa: BLE001 - a shared registry holds Protobuf and worse; whatever it is, it is not ours
                name = None
            if name is None:
                if len(self._unknown) < UNKNOWN_IDS_MAX:
                    self._unknown.add(schema_id)
                raise refusal
            self._names[schema_id] = name
            return name

    def _may_call(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._calls = second, 0
        self._calls += 1
        return self._calls <= REGISTRY_CALLS_PER_SECOND_MAX


def load_catalog(registry: Registry, namespace: str) -> Catalog:
    """The ids of all schemas, from the registry.

    Raises Refused naming the subjects that are not registered.
    """
    ids: dict[str, int] = {}
    missing = []
    for topic in topics().values():
        for name in topic.records:
            found = registry.find(subject(namespace, topic.name, name), schemas()[name])
            if found is None:
                missing.append(subject(namespace, topic.name, name))
            else:
                ids[name] = found
    if missing:
        raise Refused(
            f"The registry does not hold {len(missing)} of our schemas, first {missing[0]!r}.",
            code="registry.schema_missing",
            fix="run `consentry schemas register` once against this registry",
        )
    return Catalog(registry, ids)


def catalog_of_ids(ids: Mapping[str, tuple[int, ...]]) -> Catalog:
    """A catalog that knows the schemas behind these ids, by name, and no others; it asks no
    registry.
    """
    known = schemas()
    texts = {
        one: known[name].text for name, several in ids.items() if name in known for one in several
    }
    return Catalog(
        _KnownIds(texts),
        {name: several[0] for name, several in ids.items() if several and name in known},
    )


class _KnownIds:
    """A registry that nothing can be added to."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts

    def register(self, subject: str, schema: Schema) -> int:
        """See Registry. Raises Refused."""
        raise Refused(
            "These schema ids were read from a file; nothing can be registered there.",
            code="registry.read_only",
            fix="connect to the registry",
        )

    def find(self, subject: str, schema: Schema) -> int | None:
        """See Registry."""
        return next((one for one, text in self._texts.items() if text == schema.text), None)

    def text(self, schema_id: int) -> str | None:
        """See Registry."""
        return self._texts.get(schema_id)

    def set_compatibility(self, subject: str, level: str) -> None:
        """See Registry; nothing here evolves."""


def register_all(registry: Registry, namespace: str) -> dict[str, int]:
    """Register every schema for its topic, FULL_TRANSITIVE, and return the ids by subject."""
    ids = {}
    for topic in topics().values():
        for name in topic.records:
            known = subject(namespace, topic.name, name)
            ids[known] = registry.register(known, schemas()[name])
            registry.set_compatibility(known, "FULL_TRANSITIVE")
    return ids
