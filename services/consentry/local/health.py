"""Real requests to the local stack's three services, the only proof that they are ready."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient


class NotAnswering(Exception):
    """Raised when a service of the local stack does not answer a real request.

    The message says what came instead.
    """


def ask_kafka(bootstrap: str, *, timeout_seconds: float) -> str:
    """Ask the local Kafka for its topics, and return its cluster id; raises NotAnswering."""
    client = AdminClient(
        {"bootstrap.servers": bootstrap, "log_level": 0, "client.id": "consentry-local"}
    )
    try:
        metadata = client.list_topics(timeout=timeout_seconds)
    except KafkaException as error:
        raise NotAnswering(f"no list of topics from {bootstrap}: {error}") from error
    if not metadata.brokers:
        raise NotAnswering(f"{bootstrap} names no broker yet")
    return str(metadata.cluster_id)


def ask_redis(url: str, *, timeout_seconds: float) -> str:
    """Send PING to the local Redis, and return its run id; raises NotAnswering."""
    # A retry inside the client would hide the failure that this has to see.
    client = redis.Redis.from_url(
        url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, retry=None
    )
    try:
        client.ping()
        return str(client.info("server")["run_id"])
    except (redis.RedisError, OSError) as error:
        raise NotAnswering(f"no answer to PING from {url}: {error}") from error
    finally:
        client.close()


def ask_registry(url: str, *, timeout_seconds: float) -> str:
    """Ask the local schema registry for its subjects, and return its answer's text.

    Raises NotAnswering.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=timeout_seconds
    )
    try:
        connection.request("GET", f"{parts.path}/subjects")
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise NotAnswering(f"no list of subjects from {url}: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise NotAnswering(f"{url}/subjects answered {answer.status}: {text[:160]}")
    return text
