"""Settings: complete before anything starts, refused by the name of their variable, and silent
about secrets.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from consentry.domain.errors import InvalidInput
from consentry.ops.settings import Settings

SECRETS = {
    "kafka_sasl_password": "swordfish-1",
    "redis_url": "redis://:swordfish-2@redis:6379/0",
    "registry_credentials": "user:swordfish-3",
}


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "variable"),
        [
            ({"kafka_bootstrap": "broker"}, "CONSENTRY_KAFKA_BOOTSTRAP"),
            ({"kafka_bootstrap": "broker:9092,other:x"}, "CONSENTRY_KAFKA_BOOTSTRAP"),
            ({"kafka_security_protocol": "PLAIN"}, "CONSENTRY_KAFKA_SECURITY_PROTOCOL"),
            ({"namespace": "Consentry!"}, "CONSENTRY_NAMESPACE"),
            ({"profile": "prod"}, "CONSENTRY_PROFILE"),
            ({"table_members": 5}, "CONSENTRY_TABLE_MEMBERS"),
            ({"staleness_seconds": 0}, "CONSENTRY_STALENESS_SECONDS"),
            ({"staleness_seconds": "soon"}, "CONSENTRY_STALENESS_SECONDS"),
            ({"metrics_port": 70_000}, "CONSENTRY_METRICS_PORT"),
            ({"log_format": "xml"}, "CONSENTRY_LOG_FORMAT"),
            ({"worker_id": "a/b"}, "CONSENTRY_WORKER_ID"),
        ],
    )
    def test_a_value_that_does_not_fit_is_refused_by_its_variable(
        self, values: Mapping[str, object], variable: str
    ) -> None:
        """The operator sets variables, not our fields."""
        with pytest.raises(InvalidInput, match=variable):
            Settings.parse(values)

    def test_a_variable_of_the_environment_is_refused_alike(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That is where nearly all of them come from."""
        monkeypatch.setenv("CONSENTRY_METRICS_PORT", "many")

        with pytest.raises(InvalidInput, match=r"CONSENTRY_METRICS_PORT has a value 'many'"):
            Settings.parse()

    @pytest.mark.parametrize("text", ["ranker", "ranker=", "=posts", "a=b,c"])
    def test_subscribers_that_are_no_pairs_are_refused(self, text: str) -> None:
        """A subscriber that is not understood would owe nothing."""
        with pytest.raises(InvalidInput, match="CONSENTRY_SUBSCRIBERS"):
            Settings.parse({"subscribers": text}).declared_subscribers()

    def test_settings_cannot_be_changed_once_they_are_read(self) -> None:
        """Two parts of one process would else work with two truths."""
        settings = Settings.parse()

        with pytest.raises(ValueError, match="frozen"):
            settings.namespace = "other"


class TestSecrets:
    def test_no_secret_shows_when_settings_are_printed(self) -> None:
        """Settings land in logs and in tickets."""
        settings = Settings.parse(SECRETS)

        for text in (repr(settings), str(settings), settings.model_dump_json()):
            assert "swordfish" not in text

    def test_clients_get_the_secrets(self) -> None:
        """Masked everywhere would be a broker that nobody can reach."""
        settings = Settings.parse(
            SECRETS
            | {
                "kafka_bootstrap": "broker:9092",
                "kafka_security_protocol": "SASL_SSL",
                "kafka_ca_file": "/ca",
            }
        )

        assert settings.kafka()["sasl.password"] == "swordfish-1"
        assert settings.kafka()["ssl.ca.location"] == "/ca"
        assert settings.registry() == {"basic.auth.user.info": "user:swordfish-3"}

    def test_without_security_no_secret_is_handed_to_a_client(self) -> None:
        """A plain connection would send it to whoever listens."""
        settings = Settings.parse(SECRETS | {"kafka_bootstrap": "broker:9092"})

        assert "sasl.password" not in settings.kafka()
        assert Settings.parse().registry() == {}


def test_subscribers_are_read_as_pairs() -> None:
    """Each owes a receipt per data set."""
    settings = Settings.parse({"subscribers": "ranker=posts, writer=articles,"})

    assert settings.declared_subscribers() == (("ranker", "posts"), ("writer", "articles"))
