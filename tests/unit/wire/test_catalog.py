"""Schema ids: which means which record, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.strategies import NAMESPACE, new_catalog

from consentry.domain.errors import Refused, Unavailable, UndecodableEvent
from consentry.wire.catalog import (
    REGISTRY_CALLS_PER_SECOND_MAX,
    Catalog,
    InMemoryRegistry,
    load_catalog,
    register_all,
)
from consentry.wire.schemas import Schema, schemas, topics

EVENTS = topics()["member-events"].records


class CountingRegistry(InMemoryRegistry):
    """Counts how often it is asked for a text, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.is_away = False

    def text(self, schema_id: int) -> str | None:
        self.asked += 1
        if self.is_away:
            raise Unavailable("away", code="registry.unavailable")
        return super().text(schema_id)


@pytest.fixture
def registry() -> CountingRegistry:
    return CountingRegistry()


@pytest.fixture
def catalog(registry: CountingRegistry) -> Catalog:
    return new_catalog(registry)


def schema_of(text: str) -> Schema:
    """Somebody else's schema."""
    return Schema("other", text, None, "")


class TestCatalog:
    def test_every_record_has_an_id_that_means_it(self, catalog: Catalog) -> None:
        """What a producer writes is what the worker must take it for."""
        for topic in topics().values():
            for name in topic.records:
                assert catalog.name_of(catalog.id_of(name), allowed=topic.records) == name
                assert catalog.ids_of(name) == (catalog.id_of(name),)

    def test_an_id_of_another_record_is_refused(self, catalog: Catalog) -> None:
        """Read with the wrong schema, a withdrawal can come out as a grant."""
        with pytest.raises(UndecodableEvent) as caught:
            catalog.name_of(catalog.id_of("PauseLifted"), allowed=EVENTS)

        assert caught.value.error_class == "wrong_type"

    def test_unknown_ids_are_asked_for_ten_times_a_second_at_most(
        self, catalog: Catalog, registry: CountingRegistry
    ) -> None:
        """A flood of invented ids must not become a flood at the registry, nor slow good events
        down.
        """
        for schema_id in range(1000, 1200):
            with pytest.raises(UndecodableEvent):
                catalog.name_of(schema_id, allowed=EVENTS)

        # The second may change while we ask.
        assert registry.asked <= 2 * REGISTRY_CALLS_PER_SECOND_MAX

    def test_an_unknown_id_is_asked_for_once(
        self, catalog: Catalog, registry: CountingRegistry
    ) -> None:
        """One broken producer sends the same id a million times."""
        for _ in range(5):
            with pytest.raises(UndecodableEvent):
                catalog.name_of(4711, allowed=EVENTS)

        assert registry.asked == 1

    def test_a_registry_that_hangs_is_not_asked_for_each_event(
        self, catalog: Catalog, registry: CountingRegistry
    ) -> None:
        """Seconds of waiting for each of sixty events would stop every partition."""
        registry.is_away = True
        for unknown in range(900, 960):
            with pytest.raises(UndecodableEvent):
                catalog.name_of(unknown, allowed=EVENTS)

        assert registry.asked == 1

    def test_a_registry_that_is_away_is_asked_again_later(
        self, catalog: Catalog, registry: CountingRegistry
    ) -> None:
        """What could not be looked up is not thereby unknown for ever."""
        catalog.away_seconds = 0.0
        other = registry.register("other", schema_of(schemas()["MemberErased"].text + "\n"))
        registry.is_away = True
        with pytest.raises(UndecodableEvent):
            catalog.name_of(other, allowed=EVENTS)

        registry.is_away = False

        assert catalog.name_of(other, allowed=EVENTS) == "MemberErased"

    @pytest.mark.parametrize(
        "text",
        [
            'syntax = "proto3"; message ConsentChanged {}',
            '"string"',
            '{"type": "record", "name": "A", "fields": [{"name": "b", "type": "elsewhere.B"}]}',
            schemas()["ConsentChanged"].text.replace('"OPT_OUT", "OPT_IN"', '"OPT_IN", "OPT_OUT"'),
            "",
        ],
    )
    def test_a_schema_that_is_not_ours_is_refused_whatever_it_is(
        self, catalog: Catalog, registry: CountingRegistry, text: str
    ) -> None:
        """A registry is shared: somebody's Protobuf id must not end the worker, nor swap two
        symbols.
        """
        other = registry.register("other", schema_of(text))

        with pytest.raises(UndecodableEvent) as caught:
            catalog.name_of(other, allowed=EVENTS)

        assert caught.value.error_class == "schema_id"

    def test_a_registry_without_our_schemas_is_named_before_anything_starts(self) -> None:
        """A worker that started without ids would hold every member there is."""
        with pytest.raises(
            Refused, match=r"consentry\.controls-consentry\.PauseImposed.*schemas register"
        ):
            load_catalog(InMemoryRegistry(), NAMESPACE)

    def test_registering_twice_gives_the_same_ids(self, registry: CountingRegistry) -> None:
        """Ids are in the log: they must mean the same for as long as the log."""
        first: Mapping[str, int] = register_all(registry, NAMESPACE)

        assert register_all(registry, NAMESPACE) == first
        assert len(set(first.values())) == len(first)
