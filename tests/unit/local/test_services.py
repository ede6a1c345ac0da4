"""The settings that a stack must have so that what is tried on it holds in production."""

from __future__ import annotations

from pathlib import Path

import pytest

from consentry.local.services import (
    KafkaBroker,
    RedisServer,
    SchemaRegistry,
    find_redis,
    new_cluster_id,
    redis_major,
)


def test_redis_may_neither_evict_nor_hide_a_torn_file(tmp_path: Path) -> None:
    """A member's opt-out would be forgotten under memory pressure, or after a crash, and nobody
    would see it.
    """
    RedisServer(binary=Path("redis-server"), directory=tmp_path).preparation((6390,))
    settings = (tmp_path / "redis.conf").read_text("utf-8").splitlines()
    wanted = (
        "maxmemory-policy noeviction",
        "appendonly yes",
        "aof-load-truncated no",
        "bind 127.0.0.1",
    )
    assert [each for each in wanted if each not in settings] == []


def test_kafka_creates_no_topic_that_nobody_asked_for(tmp_path: Path) -> None:
    """A misspelt topic would swallow events here and be an error only in production."""
    KafkaBroker(jars=(), directory=tmp_path).preparation((9092, 9093))
    assert (
        "auto.create.topics.enable=false"
        in (tmp_path / "server.properties").read_text("utf-8").splitlines()
    )


def test_a_formatted_kafka_is_not_formatted_again(tmp_path: Path) -> None:
    """The log of a stack that was ended and started again would be gone, or the start would
    fail.
    """
    broker = KafkaBroker(jars=(), directory=tmp_path)
    assert broker.preparation((9092, 9093)) is not None
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "meta.properties").write_text("cluster.id=x\n", "utf-8")
    assert broker.preparation((9092, 9093)) is None


def test_the_registry_writes_an_id_before_it_gives_it_away_and_listens_on_loopback_only(
    tmp_path: Path,
) -> None:
    """After a kill an id in the Kafka log would mean another schema; on a café's network anyone
    could write one.
    """
    environment = (
        SchemaRegistry(application=tmp_path, directory=tmp_path).launch((8081,)).environment
    )
    assert "WRITE_DELAY=0" in environment["APICURIO_DATASOURCE_URL"]
    assert environment["QUARKUS_HTTP_HOST"] == environment["QUARKUS_MANAGEMENT_HOST"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("version_text", "major"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc", 7),
        ("Valkey server v=9.1.2 sha=00000000:1", 9),
        ("Redis server v=6.0.16", 6),
        ("something else", None),
    ],
)
def test_the_version_of_a_server_is_read_from_what_it_tells(
    tmp_path: Path, version_text: str, major: int | None
) -> None:
    """An old server without functions would be started, and the table would fail at its first
    write.
    """
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho '{version_text}'\n", "utf-8")
    server.chmod(0o755)
    assert redis_major(str(server)) == major


def test_a_redis_that_is_too_old_is_passed_over_for_the_bundled_one(tmp_path: Path) -> None:
    """Someone with the Redis of an old distribution could not use the stack at all."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16'\n", "utf-8")
    old.chmod(0o755)
    path = find_redis(str(old))
    assert path != old
    assert (redis_major(str(path)) or 0) >= 7


def test_a_cluster_id_is_one_that_kafka_takes() -> None:
    """Kafka refuses an id with a leading dash: one start in sixty-four would fail."""
    for _ in range(300):
        cluster_id = new_cluster_id()
        assert len(cluster_id) == 22
        assert not cluster_id.startswith("-")
