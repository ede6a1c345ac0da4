"""The real local stack: three real servers, started and ended by the real command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consentry.local.ports import LOOPBACK_NAMES, Listener, find_listener, listening_addresses
from consentry.local.stack import LocalStack
from consentry.local.state import ProcessIdentity, load_state, log_path, read_state, state_directory

pytestmark = pytest.mark.stack

CLI = [
    sys.executable,
    "-c",
    "from consentry.cli.local import app; app(prog_name='consentry local')",
]
READY_SECONDS_MAX = 300.0


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache that all stacks of this computer share, so that downloads happen once."""
    told = os.environ.get("CONSENTRY_CACHE_DIR")
    platform_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(told) if told else Path(platform_cache) / "consentry"


@pytest.fixture(scope="module")
def stack(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """One ephemeral stack for the tests that do not end it."""
    stack = LocalStack(tmp_path_factory.mktemp("ephemeral"), cache=cache, ephemeral=True)
    with stack:
        yield stack


def run_cli(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run `consentry local …` to its end."""
    environment = {**os.environ, "CONSENTRY_CACHE_DIR": str(cache), "COLUMNS": "200"}
    return subprocess.run(
        [*CLI, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=150,
        check=False,
    )


def start_cli(directory: Path, *, cache: Path, ephemeral: bool = False) -> subprocess.Popen[str]:
    """Start `consentry local up` in the foreground, and wait until its stack is up."""
    arguments = ["up", "--dir", str(directory), *(["--ephemeral"] if ephemeral else [])]
    environment = {**os.environ, "CONSENTRY_CACHE_DIR": str(cache)}
    process = subprocess.Popen(
        [*CLI, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + READY_SECONDS_MAX
    while process.poll() is None and time.monotonic() < deadline:
        state = read_state(directory)
        if state is not None and state.addresses is not None:
            return process
        time.sleep(0.1)
    process.kill()
    output, _ = process.communicate()
    raise AssertionError(f"the stack did not come up: {output}")


def register(registry_url: str, subject: str) -> int:
    """Register a schema of its own under `subject`, and return its id."""
    schema = json.dumps(
        {"type": "record", "name": subject, "fields": [{"name": "member", "type": "string"}]}
    )
    answer = ask_registry(registry_url, "POST", f"/subjects/{subject}/versions", {"schema": schema})
    return int(answer["id"])


def schema_name(registry_url: str, schema_id: int) -> str:
    """Return the name of the schema that has this id."""
    answer = ask_registry(registry_url, "GET", f"/schemas/ids/{schema_id}")
    return str(json.loads(str(answer["schema"]))["name"])


def ask_registry(
    url: str, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, str | int]:
    """Send one request and return the parsed answer, which has to be 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(
            method, parts.path + path, None if body is None else json.dumps(body), headers
        )
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    assert response.status == 200, text
    answer: dict[str, str | int] = json.loads(text)
    return answer


class TestServices:
    """What runs is the real thing, and it is ours."""

    def test_kafka_keeps_what_is_produced_and_creates_no_topic_by_itself(
        self, stack: LocalStack
    ) -> None:
        """Everything that is tried on the stack rests on a Kafka that behaves as in production."""
        bootstrap: dict[str, str | int | float | bool] = {
            "bootstrap.servers": stack.addresses.kafka
        }
        admin = AdminClient(bootstrap)
        admin.create_topics([NewTopic("trial", num_partitions=1, replication_factor=1)])[
            "trial"
        ].result(20)
        producer = Producer({**bootstrap, "enable.idempotence": True})
        producer.produce("trial", key=b"m1", value=b"v1", headers=[("origin", b"test")])
        assert producer.flush(20) == 0
        consumer = Consumer({**bootstrap, "group.id": "trial", "auto.offset.reset": "earliest"})
        try:
            consumer.subscribe(["trial"])
            message = consumer.poll(30)
        finally:
            consumer.close()
        assert message is not None
        assert (message.key(), message.value(), message.headers()) == (
            b"m1",
            b"v1",
            [("origin", b"test")],
        )
        assert admin.list_topics("misspelt", timeout=10).topics["misspelt"].error is not None
        assert "misspelt" not in admin.list_topics(timeout=10).topics

    def test_redis_has_functions_and_the_settings_that_the_table_insists_on(
        self, stack: LocalStack
    ) -> None:
        """The table would refuse to start, or could lose an opt-out."""
        client = redis.Redis.from_url(stack.addresses.redis_url, decode_responses=True)
        try:
            client.function_load(
                "#!lua name=trial\nredis.register_function('trial', function() return 'ran' end)"
            )
            assert client.fcall("trial", 0) == "ran"
            told = {
                name: client.config_get(name)[name]
                for name in ("maxmemory-policy", "appendonly", "appendfsync")
            }
        finally:
            client.close()
        assert told == {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
        }

    def test_the_registry_speaks_the_confluent_api(self, stack: LocalStack) -> None:
        """Every client of the schemas uses that API."""
        schema_id = register(stack.addresses.registry_url, "Trial")
        assert schema_name(stack.addresses.registry_url, schema_id) == "Trial"

    def test_every_listener_is_our_child_and_on_loopback_only(self, stack: LocalStack) -> None:
        """An open port would let anyone on the same network read and write consent events."""
        addresses = stack.addresses
        clients = {
            "kafka": int(addresses.kafka.rpartition(":")[2]),
            "redis": urlsplit(addresses.redis_url).port or 0,
            "registry": urlsplit(addresses.registry_url).port or 0,
        }
        for name, port in clients.items():
            assert find_listener(port, child_pid=stack.processes[name]) is Listener.OURS
        hosts = {host for pid in stack.processes.values() for host, _ in listening_addresses(pid)}
        assert hosts <= LOOPBACK_NAMES

    @pytest.mark.parametrize("name", ["kafka", "redis", "registry"])
    def test_a_killed_service_comes_back_on_its_port_with_its_data(
        self, stack: LocalStack, name: str
    ) -> None:
        """Every test of faults kills a service in this way, and would prove nothing if it came back
        empty.
        """
        client = redis.Redis.from_url(stack.addresses.redis_url, decode_responses=True)
        schema_id = register(stack.addresses.registry_url, f"Before{name}")
        topic = f"before-{name}"
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka, "log_level": 0})
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[
            topic
        ].result(20)
        client.set(topic, "kept")
        before = stack.addresses

        time.sleep(
            1.1
        )  # Redis writes its log to the disk each second; the others before they answer
        os.kill(stack.processes[name], signal.SIGKILL)
        while name in stack.processes:
            time.sleep(0.02)
        stack.start_service(name)

        client.close()
        client = redis.Redis.from_url(stack.addresses.redis_url, decode_responses=True)
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka, "log_level": 0})
        assert stack.addresses == before
        assert client.get(topic) == "kept"
        client.close()
        assert topic in admin.list_topics(timeout=20).topics
        assert schema_name(stack.addresses.registry_url, schema_id) == f"Before{name}"


class TestRegistryIds:
    """Schema ids lie in the Kafka log, so they have to mean the same for ever."""

    @pytest.mark.long
    def test_an_id_survives_an_orderly_restart_and_a_kill_right_after_it_was_given(
        self, cache: Path, tmp_path: Path
    ) -> None:
        """Messages in the log would be decoded by another schema: an opt-out could read as an
        opt-in.
        """
        with LocalStack(tmp_path, cache=cache) as addresses:
            first = register(addresses.registry_url, "First")
        stack = LocalStack(tmp_path, cache=cache)
        with stack as addresses:
            assert schema_name(addresses.registry_url, first) == "First"
            second = register(addresses.registry_url, "Second")
            os.kill(stack.processes["registry"], signal.SIGKILL)
            while "registry" in stack.processes:
                time.sleep(0.02)
            stack.start_service("registry")
            assert schema_name(addresses.registry_url, second) == "Second"
            assert len({first, second, register(addresses.registry_url, "Third")}) == 3


class TestCommand:
    """`consentry local` as a newcomer types it."""

    def test_down_ends_everything_and_the_data_stays(self, cache: Path, tmp_path: Path) -> None:
        """A laptop would be left with three servers, or a person without the data of yesterday."""
        up = run_cli("up", "--detach", "--dir", str(tmp_path), cache=cache)
        assert up.returncode == 0, up.stdout + up.stderr
        state = read_state(tmp_path)
        assert state is not None
        assert state.addresses is not None
        assert f"export CONSENTRY_KAFKA_BOOTSTRAP={state.addresses.kafka}" in up.stdout
        status = run_cli("status", "--json", "--dir", str(tmp_path), cache=cache)
        assert status.returncode == 0
        assert all(each["answers"] for each in json.loads(status.stdout)["services"].values())

        second = run_cli("up", "--dir", str(tmp_path), cache=cache)
        assert second.returncode == 2
        assert "already" in second.stderr
        assert "--dir" in second.stderr
        assert "Traceback" not in second.stderr

        down = run_cli("down", "--dir", str(tmp_path), cache=cache)
        assert down.returncode == 0, down.stderr
        assert all(each.process() is None for each in (state.supervisor, *state.services.values()))
        assert load_state(tmp_path) is None
        assert (state_directory(tmp_path) / "data" / "registry" / "registry.mv.db").exists()
        assert run_cli("status", "--dir", str(tmp_path), cache=cache).returncode == 1
        logs = run_cli("logs", "kafka", "-n", "500", "--dir", str(tmp_path), cache=cache)
        assert "Kafka Server started" in logs.stdout

    def test_a_killed_supervisor_takes_its_services_along_and_the_next_up_clears_the_rest(
        self, cache: Path, tmp_path: Path
    ) -> None:
        """After a crash the old broker would hold the data, and no later start would work."""
        with start_cli(tmp_path, cache=cache, ephemeral=True) as supervisor:
            state = read_state(tmp_path)
            assert state is not None
            supervisor.kill()
        if sys.platform == "linux":
            assert all(each.await_end(patience_seconds=10) for each in state.services.values())
        assert load_state(tmp_path) is not None
        assert read_state(tmp_path) is None
        assert run_cli("status", "--dir", str(tmp_path), cache=cache).returncode == 1

        with start_cli(tmp_path, cache=cache) as supervisor:
            supervisor.send_signal(signal.SIGINT)
            output, _ = supervisor.communicate(timeout=40)
        assert supervisor.returncode == 0
        assert "did not end cleanly" in output
        assert not list(state_directory(tmp_path).glob("ephemeral-*"))
        assert load_state(tmp_path) is None

    @pytest.mark.long
    def test_a_stack_ends_with_the_program_that_started_it(
        self, cache: Path, tmp_path: Path
    ) -> None:
        """A closed terminal or a cancelled CI job would leave servers behind that nobody knows
        of.
        """
        program = "import subprocess, sys; subprocess.run(sys.argv[1:], check=False)"
        command = [sys.executable, "-c", program, *CLI, "up", "--ephemeral", "--dir", str(tmp_path)]
        environment = {**os.environ, "CONSENTRY_CACHE_DIR": str(cache)}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as parent:
            deadline = time.monotonic() + READY_SECONDS_MAX
            while (state := read_state(tmp_path)) is None or state.addresses is None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            parent.kill()
        everything: tuple[ProcessIdentity, ...] = (state.supervisor, *state.services.values())
        assert all(each.await_end(patience_seconds=30) for each in everything)
        assert load_state(tmp_path) is None

    def test_a_start_that_is_interrupted_leaves_nothing_running(
        self, cache: Path, tmp_path: Path
    ) -> None:
        """Whoever changes their mind would have to hunt for Java processes, and a script would go
        on alone.
        """
        environment = {**os.environ, "CONSENTRY_CACHE_DIR": str(cache)}
        command = [*CLI, "up", "--ephemeral", "--dir", str(tmp_path)]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as supervisor:
            deadline = time.monotonic() + READY_SECONDS_MAX
            while (state := read_state(tmp_path)) is None or len(state.services) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            supervisor.send_signal(signal.SIGINT)
            _, said = supervisor.communicate(timeout=40)
        assert supervisor.returncode == 130
        assert "nothing is left running" in said
        assert all(each.process() is None for each in state.services.values())
        assert sorted(os.listdir(state_directory(tmp_path))) == ["lock", "logs"]

    def test_a_service_that_dies_ends_the_stack_and_says_why(
        self, cache: Path, tmp_path: Path
    ) -> None:
        """A person would go on for an hour against a stack that has no table."""
        arguments = ["up", "--ephemeral", "--dir", str(tmp_path)]
        environment = {**os.environ, "CONSENTRY_CACHE_DIR": str(cache)}
        with subprocess.Popen(
            [*CLI, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as supervisor:
            deadline = time.monotonic() + READY_SECONDS_MAX
            while (state := read_state(tmp_path)) is None or state.addresses is None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.kill(state.services["redis"].pid, signal.SIGKILL)
            _, said = supervisor.communicate(timeout=40)
        assert supervisor.returncode == 2
        assert "redis ended with exit status -9" in said
        assert "Ready to accept connections" in said
        assert all(each.process() is None for each in state.services.values())
        assert log_path(tmp_path, "redis").exists()
