"""What every schema registry promises.

Plug one in with a `registry` fixture, empty or at least without `subject`.
"""

from __future__ import annotations

import json

import pytest

from consentry.wire.catalog import Registry, load_catalog, register_all
from consentry.wire.schemas import canonical_fingerprint, schema, schemas, topics


class RegistryContract:
    """Every test takes `registry`, and `namespace`, under which nothing is registered yet."""

    @pytest.fixture
    def namespace(self) -> str:
        """A namespace of the test's own; override it where the registry is shared."""
        return "consentry"

    def test_a_schema_that_was_registered_is_found_under_its_subject(
        self, registry: Registry, namespace: str
    ) -> None:
        """A worker that cannot find the ids refuses to start."""
        subject = f"{namespace}.x-consentry.MemberErased"

        schema_id = registry.register(subject, schema("MemberErased"))

        assert registry.find(subject, schema("MemberErased")) == schema_id
        assert schema_id > 0

    def test_registering_again_gives_the_same_id(self, registry: Registry, namespace: str) -> None:
        """Ids are in the log for ever; a deployment must not change what they mean."""
        subject = f"{namespace}.x-consentry.MemberErased"

        assert registry.register(subject, schema("MemberErased")) == registry.register(
            subject, schema("MemberErased")
        )

    def test_what_was_not_registered_is_not_found(self, registry: Registry, namespace: str) -> None:
        """A similar schema is another schema."""
        subject = f"{namespace}.x-consentry.MemberErased"

        assert registry.find(subject, schema("MemberErased")) is None
        registry.register(subject, schema("MemberErased"))
        assert registry.find(subject, schema("MemberRelocated")) is None
        assert (
            registry.find(f"{namespace}.y-consentry.MemberErased", schema("MemberErased")) is None
        )

    def test_the_text_behind_an_id_means_the_schema_that_was_registered(
        self, registry: Registry, namespace: str
    ) -> None:
        """A reader that meets the id first has only this text to judge by."""
        schema_id = registry.register(
            f"{namespace}.x-consentry.ConsentChanged", schema("ConsentChanged")
        )

        text = registry.text(schema_id)

        assert text is not None
        assert canonical_fingerprint(text) == schema("ConsentChanged").fingerprint
        assert [field["pii"] for field in json.loads(text)["fields"]][-1] == "pseudonym"

    def test_an_id_that_does_not_exist_has_no_text(self, registry: Registry) -> None:
        """Not known is an answer; an error would be retried for ever."""
        assert registry.text(1_999_999_999) is None

    def test_the_compatibility_level_of_a_subject_can_be_set(
        self, registry: Registry, namespace: str
    ) -> None:
        """Only full compatibility lets producers and trainers upgrade in any order."""
        subject = f"{namespace}.x-consentry.MemberErased"
        registry.register(subject, schema("MemberErased"))

        registry.set_compatibility(subject, "FULL_TRANSITIVE")

        assert registry.find(subject, schema("MemberErased")) is not None

    def test_all_our_schemas_register_and_make_a_catalog(
        self, registry: Registry, namespace: str
    ) -> None:
        """The first step of every installation."""
        ids = register_all(registry, namespace)

        catalog = load_catalog(registry, namespace)

        assert len(ids) == len(schemas())
        for topic in topics().values():
            for name in topic.records:
                assert catalog.name_of(catalog.id_of(name), allowed=[name]) == name
