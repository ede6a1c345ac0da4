"""The results as a JSON document, and as tables for a person."""

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

from bench.figures import spread_columns, yes_or_no
from bench.stack import BenchNamespace
from consentry.kafka.clients import client_config
from consentry.kafka.topics import REPLICAS, topic_configs
from consentry.local.artifacts import load_lock
from consentry.wire.schemas import MEMBER_EVENTS

RATIO_MIN = 10.0
TABLE_RATIO_MIN = 50.0
P99_MS_MAX = 50.0
_LATENCY_RANKS = ("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
PACKAGES = (
    *("consentry", "confluent-kafka", "redis", "hiredis", "fastavro"),
    *("numpy", "pyarrow", "faust-streaming", "aiokafka"),
)


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    return {
        "cpus": os.cpu_count(),
        "model": _processor_model(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load_1_minute": round(os.getloadavg()[0], 2),
    }


def _processor_model() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", cpu_info.read_text(), re.MULTILINE)
        if model:
            return model[1]
    return platform.processor() or platform.machine()


def packages() -> dict[str, str]:
    """Return the versions of the packages that are measured."""
    return {package: version(package) for package in PACKAGES}


def versions(namespace: BenchNamespace) -> dict[str, str]:
    """Return the versions of the software that is measured, servers included."""
    brokers = [jar.version for jar in load_lock().kafka if jar.artifact.startswith("kafka_")]
    broker = ""
    if brokers:
        broker = brokers[0]
    with redis.Redis.from_url(namespace.addresses.redis_url) as server:
        info: Any = server.info("server")
    name = info.get("server_name", "redis")
    return {
        **packages(),
        "librdkafka": str(confluent_kafka.libversion()[0]),
        "kafka": broker,
        "table_server": f"{name} {info.get(f'{name}_version', info['redis_version'])}",
    }


def settings(namespace: BenchNamespace) -> dict[str, Any]:
    """Return the settings behind an acknowledgement: copies, and when servers write to disk."""
    topic = namespace.topic(MEMBER_EVENTS)
    admin = AdminClient(client_config(namespace.kafka, "consentry-bench"))
    config = topic_configs(admin, [topic])[topic]
    with redis.Redis.from_url(namespace.addresses.redis_url) as server:
        append: Any = server.config_get("append*")
    return {
        "rf": REPLICAS["local"],
        "acks": "all",
        "partitions": namespace.partitions,
        "broker_flush_messages": config["flush.messages"],
        "broker_flush_ms": config["flush.ms"],
        "appendonly": append["appendonly"],
        "appendfsync": append["appendfsync"],
    }


def document(
    *,
    about: Mapping[str, Any],
    rules: Mapping[str, Any],
    throughput: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    at: datetime,
) -> dict[str, Any]:
    """Return all results; `about` holds machine, versions and settings.

    Parts that were not measured are left out.
    """
    results: dict[str, Any] = {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "rules": dict(rules),
        "ok": {"table_ratio_at_least_50": rules["ratio_warm"] >= TABLE_RATIO_MIN},
    }
    if throughput is not None:
        results["throughput"] = dict(throughput)
        results["ok"]["ratio_at_least_10"] = throughput["ratio"] >= RATIO_MIN
    if latency is not None:
        results["latency"] = dict(latency)
        results["ok"]["p99_at_most_50_ms"] = latency["event_to_trainer"]["p99_ms"] <= P99_MS_MAX
    return results


def write(results: Mapping[str, Any], directory: Path) -> Path:
    """Write the results to a file named by the time of the measurement; return its path."""
    directory.mkdir(exist_ok=True)
    name = datetime.fromisoformat(results["measured_at"]).strftime("%Y-%m-%dT%H%M%SZ.json")
    path = directory / name
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the main figures for a person."""
    _show_rules(results["rules"], results["ok"], console)
    if "throughput" in results:
        _show_throughput(results["throughput"], results["ok"], console)
    if "latency" in results:
        _show_latency(results["latency"], results["ok"], console)
    machine = results["machine"]
    console.print(f"Load before it began: {machine['load_1_minute']} on {machine['cpus']} CPUs")


def _show_rules(rules: Mapping[str, Any], ok: Mapping[str, bool], console: Console) -> None:
    sizes = rules["sizes"]
    under = f"under {sizes['controls_many']:,} controls"
    table = f"{sizes['rows']:,} rows of {sizes['members']:,} members"
    lines = {
        "events folded a second": "fold_events_per_second",
        "questions a second": "decide_per_second",
        f"µs a question {under}, first time": "decide_cold_micros",
        "µs, the same question again": "decide_warm_micros",
        "µs for one control more": "extend_micros",
        f"rows a second, {table}": "table_cold_rows_per_second",
        f"rows a second after {sizes['opt_outs']:,} opt-outs": "table_warm_rows_per_second",
        "rows a second, each decided alone": "naive_rows_per_second",
    }
    rates = Table("rules, on one core", "median", "lowest", "highest")
    for title, name in lines.items():
        rates.add_row(title, *spread_columns(rules[name]))
    console.print(rates)
    verdict = yes_or_no(ok["table_ratio_at_least_50"])
    console.print(
        f"A table at once: {rules['ratio_warm']} times the loop over its rows (50 wanted: "
        f"{verdict}); {rules['ratio_cold']} times when asked for the first time"
    )


def _show_throughput(
    throughput: Mapping[str, Any], ok: Mapping[str, bool], console: Console
) -> None:
    rates = Table(
        "throughput", "events", "events/s, median", "lowest", "highest", "CPU s per million events"
    )
    for name in ("ours", "naive"):
        run = throughput[name]
        columns = spread_columns(run["events_per_second"])
        cpu = _pairs(run["cpu_seconds_per_million"])
        rates.add_row(name, f"{run['events']:,}", *columns, cpu)
    console.print(rates)
    steps = _pairs(throughput["ours"]["step_seconds_per_million"])
    console.print(f"The hot path's seconds per million events by step: {steps}")
    verdict = yes_or_no(ok["ratio_at_least_10"])
    console.print(f"{throughput['ratio']} times the naive peer (10 wanted: {verdict})")


def _show_latency(latency: Mapping[str, Any], ok: Mapping[str, bool], console: Console) -> None:
    delays = Table(
        f"latency at {latency['rate']:g} events/s", "count", "p50 ms", "p90", "p99", "p99.9", "max"
    )
    for name in ("event_to_trainer", "pause_to_trainer", "generator_lateness"):
        figure = latency.get(name)
        if figure:
            ranks = [f"{figure[rank]:.1f}" for rank in _LATENCY_RANKS]
            delays.add_row(name.replace("_", " "), f"{figure['count']:,}", *ranks)
    console.print(delays)
    p99_ms = latency["event_to_trainer"]["p99_ms"]
    verdict = yes_or_no(ok["p99_at_most_50_ms"])
    console.print(f"p99 {p99_ms} ms (50 wanted: {verdict})")


def _pairs(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())
