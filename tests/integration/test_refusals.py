"""Whatever is wrong at the start is said in one paragraph, with exit status 2, and nothing has been
written.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from tests.stack import World, now, wait_for

from consentry import cli
from consentry.local.stack import LocalStack
from consentry.wire.catalog import register_all
from consentry.wire.messages import StoredMessage
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, RECORDS

pytestmark = pytest.mark.stack

CONNECT_SECONDS_MAX = 30.0


def assert_refused(done: subprocess.CompletedProcess[str], code: str) -> None:
    """Exit status 2 and one paragraph that names the code, not a traceback."""
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    assert f"[{code}]" in done.stderr, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("consentry: ")]
    assert len(told) == 1
    assert " Fix: " in told[0]


def assert_untouched(world: World, topics: set[str]) -> None:
    """No topic and no key came into being."""
    assert world.topics() == topics
    assert not world.has_keys()


@pytest.fixture(scope="module")
def prepared(shared: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One prepared namespace for all tests that must not change anything in it."""
    world = World(shared, tmp_path_factory.mktemp("prepared"))
    yield world
    world.close()


Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(
    prepared: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Run a command in this process, as the installed script does: its interpreter's start is most
    of its time.
    """

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        for name, value in prepared.environment(**environment).items():
            if name.startswith("CONSENTRY_"):
                monkeypatch.setenv(name, value)
        monkeypatch.chdir(prepared.directory)
        monkeypatch.setattr(sys, "argv", ["consentry", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(
            arguments, int(ended.value.code or 0), said.out, said.err
        )

    return run


def written(world: World) -> list[StoredMessage]:
    """Everything that stands in the topics that people write to."""
    return world.log(MEMBER_EVENTS) + world.log(CONTROLS)


def nobody_listens() -> int:
    """A port of this computer where nothing answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestValues:
    """What a person types."""

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("emit", "opt-out", "someone@example.org"), "input.member_id"),
            (("emit", "opt-out", "anna", "--purpose", "Gen AI"), "input.purpose"),
            (("emit", "relocate", "anna", "UK"), "input.jurisdiction"),
            (("emit", "relocate", "anna", "*"), "input.jurisdiction"),
            (("emit", "relocate", "anna", "EEA"), "input.jurisdiction"),
            (("emit", "erase", "anna", "--effective", "yesterday"), "input.form"),
            (("emit", "erase", "anna", "--effective", "0001-01-01"), "input.form"),
            (("emit", "erase", "anna", "--effective", "9999-12-31T23:59:59-12:00"), "input.form"),
            (("explain", "anna", "--at", "0001-01-01T00:00:00+12:00"), "input.form"),
            (("explain", "anna", "--known-at", "2024-13-01"), "input.form"),
            (("pause", "impose", "hk-2024", "--jurisdiction", ""), "input.form"),
            (("pause", "impose", "hk-2024", "--jurisdiction", "Hong Kong"), "input.form"),
            (("pause", "impose", "HK 2024", "--jurisdiction", "HK"), "input.pause"),
            (
                ("pause", "impose", "hk-2024", "--jurisdiction", "HK", "--purpose", ""),
                "input.purpose",
            ),
            (("table", "verify", "--follower", "here"), "input.follower"),
            (("policy", "publish", "no-such-file.yaml"), "input.file"),
        ],
    )
    def test_a_value_that_does_not_fit_is_named_and_nothing_is_sent(
        self, prepared: World, typed: Typed, arguments: tuple[str, ...], code: str
    ) -> None:
        """A typing error would become a control or an event that covers the wrong people, or
        none.
        """
        topics = prepared.topics()
        assert_refused(typed(*arguments), code)
        assert_untouched(prepared, topics)
        assert written(prepared) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            ("emit", "relocate", "anna", "HK", "--age-band", "OLD"),
            ("emit", "opt-in", "anna", "--observed", "-1"),
            ("pause", "impose", "hk-2024", "--jurisdiction", "HK", "--reach", "PAST"),
            ("pause", "impose", "hk-2024"),
            ("pause", "lift", "hk-2024", "--opt-ins", "MAYBE"),
            ("nonsense",),
        ],
    )
    def test_a_word_that_the_command_does_not_know_is_refused_by_its_usage(
        self, prepared: World, typed: Typed, arguments: tuple[str, ...]
    ) -> None:
        """Guessing what was meant would send something else."""
        done = typed(*arguments)
        assert done.returncode == 2
        assert "Usage" in done.stderr
        assert written(prepared) == []

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "version: a\nterms: [{jurisdictions: [HK], purpose: p, regime: OPT_IN, regimes: "
                "x}]",
                "regimes",
            ),
            ("version: a\nterms: [{jurisdictions: [UK], purpose: p, regime: OPT_IN}]", "UK"),
            ("version: a\nterms: [{jurisdictions: [], purpose: p, regime: OPT_IN}]", "empty"),
            ("version: a\nterms: []", "terms"),
            (
                "version: a\neffective: 2024-13-45\nterms: [{jurisdictions: [HK], purpose: p, "
                "regime: OPT_IN}]",
                "date",
            ),
            (
                "version: a\neffective: soon\nterms: [{jurisdictions: [HK], purpose: p, regime: "
                "OPT_IN}]",
                "soon",
            ),
            (
                "version: a\nterms: [{jurisdictions: [HK], purpose: p, regime: OPT_IN, purge: "
                "{within: P-3D}}]",
                "P-3D",
            ),
            ("version: a\nterms: [{jurisdictions: [HK], purpose: p, regime: LATER}]", "LATER"),
            ("version: a\nversion: b\nterms: []", "YAML"),
            ("version: \x00", "YAML"),
            ("[", "YAML"),
            ("", "mapping"),
        ],
    )
    def test_a_policy_file_with_a_mistake_is_refused_by_name(self, text: str, said: str) -> None:
        """A policy that is half understood could allow what it was to forbid."""
        from consentry.domain.errors import InvalidInput
        from consentry.forms.controls import parse_policy_file

        with pytest.raises(InvalidInput) as refused:
            parse_policy_file(text, event_id=uuid.uuid4().bytes, recorded_at=now(), source="test")
        assert said in str(refused.value)

    def test_a_policy_file_with_a_mistake_reaches_nobody(
        self, prepared: World, typed: Typed
    ) -> None:
        """As above, by the command that people type."""
        (prepared.directory / "policy.yaml").write_text(
            "version: a\neffective: 2024-02-30\nterms: []"
        )
        assert_refused(typed("policy", "publish", "policy.yaml"), "input.form")
        assert written(prepared) == []

    def test_a_pause_that_would_stop_nothing_is_refused(self, world: World) -> None:
        """The desk would see *accepted*, and the country would go on being trained on."""
        impose = ("pause", "impose", "hk-2024", "--jurisdiction", "HK")
        world.ok(*impose)
        world.ok(*impose)
        assert_refused(world.cli(*impose, "--jurisdiction", "SG"), "input.pause_version")
        assert_refused(world.cli("pause", "lift", "hk-2025"), "input.pause_unknown")
        world.ok("pause", "lift", "hk-2024")
        assert_refused(world.cli(*impose), "input.pause_version")
        world.ok(*impose, "--version", "2")


class TestAddresses:
    """What the environment says."""

    @pytest.mark.parametrize(
        ("setting", "value", "code"),
        [
            ("KAFKA_BOOTSTRAP", "localhost", "settings.invalid"),
            ("KAFKA_BOOTSTRAP", "", "settings.address_missing"),
            ("NAMESPACE", "Not A Name", "settings.invalid"),
            ("METRICS_PORT", "70000", "settings.invalid"),
            ("PROFILE", "test", "settings.invalid"),
            ("STALENESS_SECONDS", "0", "settings.invalid"),
        ],
    )
    def test_a_setting_that_does_not_fit_is_named_before_anything_starts(
        self, prepared: World, typed: Typed, setting: str, value: str, code: str
    ) -> None:
        """A worker would run with a default that nobody chose."""
        topics = prepared.topics()
        assert_refused(typed("processor", **{setting: value}), code)
        assert_untouched(prepared, topics)

    @pytest.mark.parametrize(
        ("setting", "value", "code"),
        [
            ("REDIS_URL", "localhost:6379", "settings.redis_url"),
            ("SUBSCRIBERS", "ranker", "settings.invalid"),
            ("FAILPOINT", "after_lunch", "settings.invalid"),
            ("FAILPOINT", "after_store:often", "settings.invalid"),
        ],
    )
    def test_a_setting_that_only_the_worker_understands_ends_it(
        self, prepared: World, setting: str, value: str, code: str
    ) -> None:
        """A subscriber that is misspelt would owe no receipt."""
        topics = prepared.topics()
        assert_refused(prepared.cli("processor", environment={setting: value}), code)
        assert_untouched(prepared, topics)

    def test_a_secret_in_an_address_is_never_printed(self, typed: Typed) -> None:
        """A password would stand in the logs of every failed start."""
        done = typed("table", "stats", REDIS_URL="redis://:hunter2@127.0.0.1:1/0")
        assert_refused(done, "table.unavailable")
        assert "hunter2" not in done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("setting", "code"),
        [
            ("KAFKA_BOOTSTRAP", "kafka.unavailable"),
            ("REGISTRY_URL", "registry.unavailable"),
            ("REDIS_URL", "table.unavailable"),
        ],
    )
    def test_a_service_that_is_away_is_named_in_bounded_time(
        self, prepared: World, setting: str, code: str
    ) -> None:
        """An operator would watch a silent process and not know which of three services to look
        at.
        """
        address = {
            "KAFKA_BOOTSTRAP": "127.0.0.1:{}",
            "REGISTRY_URL": "http://127.0.0.1:{}",
            "REDIS_URL": "redis://127.0.0.1:{}/0",
        }
        topics, started_at = prepared.topics(), time.monotonic()
        done = prepared.cli(
            "processor", environment={setting: address[setting].format(nobody_listens())}
        )
        assert_refused(done, code)
        assert time.monotonic() - started_at < CONNECT_SECONDS_MAX
        assert_untouched(prepared, topics)

    def test_a_metrics_port_that_is_taken_is_named(self, prepared: World) -> None:
        """A worker without metrics is a worker that nobody watches."""
        topics = prepared.topics()
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = prepared.cli(
                "processor", environment={"METRICS_PORT": str(taken.getsockname()[1])}
            )
        assert_refused(done, "metrics.address")
        assert_untouched(prepared, topics)


class TestSurroundings:
    """What stands on the broker, the registry and the table's server."""

    def test_missing_topics_and_schemas_are_asked_for_and_not_made(self, bare: World) -> None:
        """Topics that come into being by themselves have one partition, and forget."""
        assert_refused(bare.cli("processor"), "kafka.topic_missing")
        assert_refused(bare.cli("emit", "opt-out", "anna"), "kafka.topic_missing")
        assert_untouched(bare, set())
        bare.apply_topics()
        topics = bare.topics()
        assert_refused(bare.cli("processor"), "registry.schema_missing")
        assert_refused(bare.cli("emit", "opt-out", "anna"), "registry.schema_missing")
        assert_untouched(bare, topics)
        register_all(bare.registry, bare.namespace)

    @pytest.mark.parametrize(
        ("setting", "value"), [("maxmemory-policy", "allkeys-lru"), ("aof-load-truncated", "yes")]
    )
    def test_a_table_that_may_forget_is_refused_by_the_name_of_the_setting(
        self, prepared: World, setting: str, value: str
    ) -> None:
        """An evicted or truncated opt-out is an opt-out that was never made."""
        topics = prepared.topics()
        with configured(prepared, setting, value):
            assert_refused(prepared.cli("processor"), f"table.unsafe.{setting}")
            assert_untouched(prepared, topics)

    @pytest.mark.parametrize(
        ("topic", "setting", "value"),
        [
            (RECORDS, "cleanup.policy", "delete"),
            (MEMBER_EVENTS, "cleanup.policy", "compact"),
            (MEMBER_EVENTS, "message.timestamp.type", "CreateTime"),
            (MEMBER_EVENTS, "compression.type", "producer"),
            (MEMBER_EVENTS, "retention.ms", "604800000"),
        ],
    )
    def test_a_topic_that_may_forget_is_refused_by_the_name_of_the_setting(
        self, world: World, topic: str, setting: str, value: str
    ) -> None:
        """A log that is compacted or kept a week forgets opt-outs; one with producers' times proves
        nothing.
        """
        alter(world, topic, setting, value)
        assert_refused(world.cli("processor"), f"topic.unsafe.{setting}")
        assert not world.has_keys()
        differing = world.cli("topics", "diff")
        assert differing.returncode == (2 if setting == "cleanup.policy" else 1)
        assert setting in differing.stdout

    def test_a_pair_of_topics_with_unequal_partitions_is_refused(self, bare: World) -> None:
        """A member's record would lie in another partition than their events, and lose its
        order.
        """
        create(bare, RECORDS, partitions=4)
        topics = bare.topics()
        applied = bare.cli("topics", "apply")
        assert applied.returncode in (0, 2)
        if applied.returncode == 2:
            assert bare.topics() == topics
        register_all(bare.registry, bare.namespace)
        bare.cli("topics", "apply")
        refused = bare.cli("processor")
        assert refused.returncode == 2
        assert not bare.has_keys()

    def test_applying_topics_where_that_would_lose_data_changes_nothing(self, world: World) -> None:
        """One wrong command would delete the record of truth."""
        alter(world, RECORDS, "cleanup.policy", "delete")
        alter(world, MEMBER_EVENTS, "compression.type", "lz4")
        assert_refused(world.cli("topics", "apply"), "topics.would_lose_data")
        assert "compression.type is lz4" in world.cli("topics", "diff").stdout


def alter(world: World, topic: str, setting: str, value: str) -> None:
    """Change one setting of a topic of ours, and wait until the broker tells it."""
    from consentry.kafka.topics import topic_configs

    admin, name = AdminClient(dict(world.kafka)), world.topic(topic)
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(20)
    wait_for(
        lambda: topic_configs(admin, [name])[name].get(setting) == value, f"{setting} = {value}"
    )


def create(world: World, topic: str, *, partitions: int) -> None:
    """Create a topic with a count of our own."""
    name = world.topic(topic)
    admin = AdminClient(dict(world.kafka))
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1)])[
        name
    ].result(20)
    wait_for(lambda: name in world.topics(), f"the topic {name}")


@contextmanager
def configured(world: World, setting: str, value: str) -> Iterator[None]:
    """The table's server with another setting, for as long as the block lasts."""
    connection = world.redis()
    before = str(connection.config_get(setting)[setting])
    connection.config_set(setting, value)
    try:
        yield
    finally:
        connection.config_set(setting, before)
        connection.close()
