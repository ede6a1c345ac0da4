"""The results as a document of one shape, and as tables for a person."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import confluent_kafka
import redis
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from bench.stack import Place
from consentry.local.artifacts import load_lock
from consentry.wire.kafka import client_config
from consentry.wire.schemas import MEMBER_EVENTS
from consentry.wire.topics import REPLICAS, topic_configs

RATIO_MIN = 10.0
P99_MS_MAX = 50.0
PACKAGES = ("consentry", "confluent-kafka", "redis", "hiredis", "fastavro", "numpy", "faust-streaming", "aiokafka")


def machine() -> dict[str, Any]:
    """What it ran on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "cpus": os.cpu_count(),
        "model": found[1] if found else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load_1_minute": round(os.getloadavg()[0], 2),
    }


def versions(place: Place) -> dict[str, str]:
    """Which software was measured."""
    broker = next((jar.version for jar in load_lock().kafka if jar.artifact.startswith("kafka_")), "")
    with redis.Redis.from_url(place.addresses.redis_url) as server:
        info: Any = server.info("server")
    name = info.get("server_name", "redis")
    return {
        **{package: version(package) for package in PACKAGES},
        "librdkafka": str(confluent_kafka.libversion()[0]),
        "kafka": broker,
        "table_server": f"{name} {info.get(f'{name}_version', info['redis_version'])}",
    }


def settings(place: Place) -> dict[str, Any]:
    """What an acknowledgement meant: copies, and when each server writes to disk."""
    topic = place.topic(MEMBER_EVENTS)
    config = topic_configs(AdminClient(client_config(place.kafka, "consentry-bench")), [topic])[topic]
    with redis.Redis.from_url(place.addresses.redis_url) as server:
        append: Any = server.config_get("append*")
    return {
        "rf": REPLICAS["local"],
        "acks": "all",
        "partitions": place.partitions,
        "broker_flush_messages": config["flush.messages"],
        "broker_flush_ms": config["flush.ms"],
        "appendonly": append["appendonly"],
        "appendfsync": append["appendfsync"],
    }


def document(
    *,
    about: Mapping[str, Any],
    throughput: Mapping[str, Any],
    latency: Mapping[str, Any],
    at: datetime,
) -> dict[str, Any]:
    """All results; `about` holds machine, versions and settings."""
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "throughput": dict(throughput),
        "latency": dict(latency),
        "ok": {
            "ratio_at_least_10": throughput["ratio"] >= RATIO_MIN,
            "p99_at_most_50_ms": latency["event_to_trainer"]["p99_ms"] <= P99_MS_MAX,
        },
    }


def write(results: Mapping[str, Any], directory: Path) -> Path:
    """Keep the results under the time of the measurement; the file."""
    directory.mkdir(exist_ok=True)
    name = datetime.fromisoformat(results["measured_at"]).strftime("%Y-%m-%dT%H%M%SZ.json")
    path = directory / name
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print what a person wants to know first."""
    throughput, latency, ok = results["throughput"], results["latency"], results["ok"]
    rates = Table("throughput", "events", "events/s, median", "lowest", "highest", "CPU s per million events")
    for name in ("ours", "naive"):
        run = throughput[name]
        spread, cpu = run["events_per_second"], run["cpu_seconds_per_million"]
        columns = (f"{run['events']:,}", *(f"{spread[figure]:,.0f}" for figure in ("median", "low", "high")))
        rates.add_row(name, *columns, ", ".join(f"{process} {seconds}" for process, seconds in cpu.items()))
    console.print(rates)
    delays = Table(f"latency at {latency['rate']:g} events/s", "count", "p50 ms", "p90", "p99", "p99.9", "max")
    for name in ("event_to_trainer", "pause_to_trainer", "generator_lateness"):
        if figure := latency.get(name):
            ranks = (f"{figure[rank]:.1f}" for rank in ("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms"))
            delays.add_row(name.replace("_", " "), f"{figure['count']:,}", *ranks)
    console.print(delays)
    steps = ", ".join(f"{name} {value}" for name, value in throughput["ours"]["step_seconds_per_million"].items())
    console.print(f"The hot path's seconds per million events by step: {steps}")
    console.print(f"{throughput['ratio']} times the naive peer (10 wanted: {_word(ok['ratio_at_least_10'])}); ", end="")
    console.print(
        f"p99 {latency['event_to_trainer']['p99_ms']} ms (50 wanted: {_word(ok['p99_at_most_50_ms'])}); "
        f"load before it began: {results['machine']['load_1_minute']} on {results['machine']['cpus']} CPUs"
    )


def _word(is_so: bool) -> str:
    return "yes" if is_so else "no"
