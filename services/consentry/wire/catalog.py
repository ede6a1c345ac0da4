"""Schema ids of a registry, pinned to our Avro schemas: an id means a record or nothing."""

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
    """The calls that reading and writing Avro bytes makes to a schema registry."""

    def register(self, subject: str, schema: Schema) -> int:
        """Register a schema under its subject; return the id. Raises Refused, Unavailable."""
        ...

    def find(self, subject: str, schema: Schema) -> int | None:
        """Return the id of exactly this schema under the subject, or None. Raises Unavailable."""
        ...

    def text(self, schema_id: int) -> str | None:
        """Return the schema text of a schema id; None for an unknown id. Raises Unavailable."""
        ...

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set a registry subject's compatibility level. Raises Unavailable."""
        ...


class InMemoryRegistry:
    """A schema registry in the memory of this process, with the contract of a real one."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._subjects: dict[str, dict[str, int]] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """Register a schema in memory; see Registry."""
        ids = self._subjects.setdefault(subject, {})
        if schema.text not in ids:
            if schema.text not in self._texts:
                self._texts.append(schema.text)
            ids[schema.text] = self._texts.index(schema.text) + 1
        return ids[schema.text]

    def find(self, subject: str, schema: Schema) -> int | None:
        """Return the id of a schema in memory; see Registry."""
        return self._subjects.get(subject, {}).get(schema.text)

    def text(self, schema_id: int) -> str | None:
        """Return the text of a schema in memory; see Registry."""
        return self._texts[schema_id - 1] if 0 < schema_id <= len(self._texts) else None

    def set_compatibility(self, subject: str, level: str) -> None:
        """Do nothing, as no schema in memory evolves; see Registry."""


class Catalog:
    """Schema ids by Avro record and records by id, filled before any message is consumed.

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
        """Seconds for which a registry that did not answer is not called again."""
        self._pinned = {our.fingerprint: name for name, our in schemas().items()}

    def frame_of(self, name: str) -> bytes:
        """Return the frame (magic byte, schema id) to write before Avro bytes of this record."""
        return frame(self._ids[name])

    def id_of(self, name: str) -> int:
        """Return the schema id that bytes of this Avro record are written with."""
        return self._ids[name]

    def ids_of(self, name: str) -> tuple[int, ...]:
        """Return every schema id known so far to mean this Avro record."""
        return tuple(schema_id for schema_id, known in self._names.items() if known == name)

    def ids_for(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Return every schema id known so far to mean these Avro records, by name.

        See `catalog_of_ids`.
        """
        return {name: tuple(sorted(self.ids_of(name))) for name in sorted(names)}

    def name_of(self, schema_id: int, *, allowed: Iterable[str]) -> str:
        """Return the Avro record that a schema id means, if allowed. Raises UndecodableEvent."""
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
            is_away = time.monotonic() < self._away_until
            if schema_id in self._unknown or is_away or not self._may_call():
                raise refusal
            try:
                text = self._registry.text(schema_id)
            except Unavailable:
                # To ask again for each event would make the hot path wait for a registry that
                # hangs. The id is not remembered: the registry may know it later, and the member is
                # quarantined until then.
                self._away_until = time.monotonic() + self.away_seconds
                raise refusal from None
            name = self._pinned_name(text)
            if name is None:
                if len(self._unknown) < UNKNOWN_IDS_MAX:
                    self._unknown.add(schema_id)
                raise refusal
            self._names[schema_id] = name
            return name

    def _pinned_name(self, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            return self._pinned.get(canonical_fingerprint(text))
        except Exception:  # noqa: BLE001 - a shared registry holds Protobuf and worse; whatever it is, it is not ours
            return None

    def _may_call(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._calls = second, 0
        self._calls += 1
        return self._calls <= REGISTRY_CALLS_PER_SECOND_MAX


def load_catalog(registry: Registry, namespace: str) -> Catalog:
    """Return a catalog of all our Avro schemas, with ids from the schema registry.

    Raises Refused naming the subjects that are not registered.
    """
    ids: dict[str, int] = {}
    missing = []
    for topic in topics().values():
        for name in topic.records:
            record_subject = subject(namespace, topic.name, name)
            schema_id = registry.find(record_subject, schemas()[name])
            if schema_id is None:
                missing.append(record_subject)
            else:
                ids[name] = schema_id
    if missing:
        raise Refused(
            f"The registry does not hold {len(missing)} of our schemas, first {missing[0]!r}.",
            code="registry.schema_missing",
            fix="run `consentry schemas register` once against this registry",
        )
    return Catalog(registry, ids)


def catalog_of_ids(ids: Mapping[str, tuple[int, ...]]) -> Catalog:
    """Return a catalog that knows just these schema ids, by schema name; asks no registry."""
    our_schemas = schemas()
    texts: dict[int, str] = {}
    ids_to_write: dict[str, int] = {}
    for name, schema_ids in ids.items():
        if name not in our_schemas:
            continue
        for schema_id in schema_ids:
            texts[schema_id] = our_schemas[name].text
        if schema_ids:
            ids_to_write[name] = schema_ids[0]
    return Catalog(_KnownIds(texts), ids_to_write)


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
        for schema_id, text in self._texts.items():
            if text == schema.text:
                return schema_id
        return None

    def text(self, schema_id: int) -> str | None:
        """See Registry."""
        return self._texts.get(schema_id)

    def set_compatibility(self, subject: str, level: str) -> None:
        """See Registry; nothing here evolves."""


def register_all(registry: Registry, namespace: str) -> dict[str, int]:
    """Register every Avro schema for its topic, FULL_TRANSITIVE; return the ids by subject."""
    ids = {}
    for topic in topics().values():
        for name in topic.records:
            record_subject = subject(namespace, topic.name, name)
            ids[record_subject] = registry.register(record_subject, schemas()[name])
            registry.set_compatibility(record_subject, "FULL_TRANSITIVE")
    return ids
