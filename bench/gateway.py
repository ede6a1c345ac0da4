"""The load that the gateway carries.

Single requests beside a bare peer, bulk requests, and the latency of accepted requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.events import PURPOSES, pseudonym
from bench.figures import (
    CannotMeasure,
    check_count,
    latency_of,
    rate_of,
    spread_columns,
    spread_of,
    spreads_of,
)
from bench.http import Loaded, closed_loop, open_loop, request_of
from bench.stack import ROOT, BenchNamespace, Program, cpu_per_million, cpu_seconds

CONNECTIONS: Final = 32
BULK_LINES: Final = 10_000
BULK_CONNECTIONS: Final = 2
OPEN_RATE: Final = 500.0
WARM_UP: Final = 1_000
SINGLE_RATE_MIN: Final = 2_000
BULK_RATE_MIN: Final = 40_000
P99_MS_MAX: Final = 25.0


def measure_gateway(
    namespace: BenchNamespace,
    services: Mapping[str, int],
    *,
    requests: int,
    bulks: int,
    seconds: float,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Measure every way in turn, `repeats` times. Raises CannotMeasure if an event is lost.

    A gateway and its bare peer run side by side, and only one of them is used at a time.
    """
    singles: dict[str, list[Loaded]] = {"gateway": [], "with_idempotency_key": [], "bare": []}
    bulk: dict[str, list[Loaded]] = {"bulk": [], "with_own_ids": []}
    with (
        tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory,
        _gateway_program(namespace, Path(directory)) as gateway,
        _bare_program(namespace, Path(directory)) as bare,
    ):
        ours, theirs = _address(gateway, "gateway"), _address(bare, "bare")
        pids = {**services, "gateway": gateway.pid}
        for address in (ours, theirs):
            _singles(namespace, address, single_requests(WARM_UP, seed=seed))
        used: list[dict[str, float]] = []
        bulk_used: list[dict[str, float]] = []
        for repeat in range(repeats):
            plain = single_requests(requests, seed=seed + repeat)
            keyed = single_requests(requests, seed=seed + repeat, keyed=True)
            before = cpu_seconds(pids)
            singles["gateway"].append(_singles(namespace, ours, plain))
            used.append(cpu_per_million(before, cpu_seconds(pids), requests))
            singles["with_idempotency_key"].append(_singles(namespace, ours, keyed))
            singles["bare"].append(_singles(namespace, theirs, plain))
            template_lines = bulk_requests(bulks, seed=seed + repeat)
            before = cpu_seconds(pids)
            bulk["bulk"].append(_bulk(namespace, ours, template_lines))
            bulk_used.append(cpu_per_million(before, cpu_seconds(pids), bulks * BULK_LINES))
            lines_with_ids = bulk_requests(bulks, seed=seed + repeat, has_own_ids=True)
            bulk["with_own_ids"].append(_bulk(namespace, ours, lines_with_ids))
        paced = single_requests(round(OPEN_RATE * seconds), seed=seed)
        loaded = asyncio.run(open_loop(ours, paced, rate=OPEN_RATE, connections=CONNECTIONS))
        _check(loaded, 202)
    rates = _rates(singles, requests)
    pairs = zip(rates["gateway"], rates["bare"], strict=True)
    ratios = [own / peer for own, peer in pairs]
    return {
        "requests_per_second": spreads_of(rates),
        "gateway_to_bare": spread_of(ratios).median,
        "cpu_seconds_per_million": used[-1],
        "bulk_cpu_seconds_per_million": bulk_used[-1],
        "bulk_events_per_second": spreads_of(_rates(bulk, bulks * BULK_LINES)),
        "latency": {"rate": OPEN_RATE, **asdict(latency_of(loaded.samples_micros))},
    }


def _rates(runs_by_way: Mapping[str, Sequence[Loaded]], count: int) -> dict[str, list[float]]:
    """Return the rate of each run; each run carried `count` events."""
    rates: dict[str, list[float]] = {}
    for way, runs in runs_by_way.items():
        rates[way] = [rate_of(count, run.seconds) for run in runs]
    return rates


def single_requests(count: int, *, seed: int, keyed: bool = False) -> list[bytes]:
    """Return `count` opt-outs, each of another member; keyed ones have an Idempotency-Key."""
    numbers = random.Random(seed)
    requests: list[bytes] = []
    for number in range(count):
        body = json.dumps(_change(number, seed)).encode()
        headers = ""
        if keyed:
            headers = f"Idempotency-Key: {numbers.randbytes(16).hex()}\r\n"
        requests.append(request_of("/v1/consent-changes", body, headers=headers))
    return requests


def bulk_requests(count: int, *, seed: int, has_own_ids: bool = False) -> list[bytes]:
    """Return `count` requests of BULK_LINES opt-outs each.

    With `has_own_ids` each line has an id and a time of its own.
    """
    numbers = random.Random(seed)
    requests: list[bytes] = []
    for part in range(count):
        lines: list[str] = []
        for number in range(part * BULK_LINES, (part + 1) * BULK_LINES):
            change = _change(number, seed)
            if has_own_ids:
                change |= _identity(numbers, number)
            lines.append(json.dumps(change))
        body = "\n".join(lines).encode()
        requests.append(request_of("/v1/bulk", body, kind="application/x-ndjson"))
    return requests


def _change(number: int, seed: int) -> dict[str, str]:
    return {"member_id": pseudonym(number, seed=seed), "purpose": PURPOSES[0], "choice": "OPT_OUT"}


def _identity(numbers: random.Random, number: int) -> dict[str, str]:
    at = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number)
    event_id = uuid.UUID(bytes=numbers.randbytes(16))
    return {"event_id": str(event_id), "effective_at": at.isoformat()}


def _singles(namespace: BenchNamespace, address: str, requests: Sequence[bytes]) -> Loaded:
    return _closed_loop(namespace, address, requests, CONNECTIONS, events=len(requests))


def _bulk(namespace: BenchNamespace, address: str, requests: Sequence[bytes]) -> Loaded:
    return _closed_loop(
        namespace,
        address,
        requests,
        BULK_CONNECTIONS,
        events=len(requests) * BULK_LINES,
        status=200,
    )


def _gateway_program(namespace: BenchNamespace, directory: Path) -> Program:
    command = [str(Path(sys.executable).parent / "consentry"), "gateway", "--dev", "--port", "0"]
    environment = namespace.environment | {"CONSENTRY_GATEWAY_RATE": "100000000"}
    return Program("gateway", command, directory=directory, environment=environment)


def _bare_program(namespace: BenchNamespace, directory: Path) -> Program:
    command = [sys.executable, "-m", "bench.bare_gateway"]
    return Program(
        "bare",
        command,
        directory=directory,
        environment=namespace.environment | {"PYTHONPATH": _path(namespace)},
    )


def _path(namespace: BenchNamespace) -> str:
    return f"{namespace.environment['PYTHONPATH']}:{ROOT}"


def _address(program: Program, event: str) -> str:
    return str(program.wait_for(event)["url"]).removeprefix("http://")


def _closed_loop(
    namespace: BenchNamespace,
    address: str,
    requests: Sequence[bytes],
    connections: int,
    *,
    events: int,
    status: int = 202,
) -> Loaded:
    """Send everything. Raises CannotMeasure unless every answer has the status.

    Every event has to be in the log once.
    """
    before = namespace.events()
    loaded = asyncio.run(closed_loop(address, requests, connections=connections))
    _check(loaded, status)
    check_count("Events in the log", expected=events, found=namespace.events() - before)
    return loaded


def _check(loaded: Loaded, status: int) -> None:
    if set(loaded.statuses) != {status}:
        raise CannotMeasure(
            f"Not every request was answered with {status}: {dict(loaded.statuses)}."
        )


def document(
    about: Mapping[str, Any], measurement: Mapping[str, Any], *, at: datetime
) -> dict[str, Any]:
    """Return the results as they are kept; `ok` compares them with the promises."""
    singles = measurement["requests_per_second"]
    bulk = measurement["bulk_events_per_second"]
    return {
        "measured_at": at.astimezone(UTC).isoformat(timespec="seconds"),
        **about,
        "gateway": dict(measurement),
        "ok": {
            "single_at_least_2000": singles["gateway"]["median"] >= SINGLE_RATE_MIN,
            "bulk_at_least_40000": bulk["bulk"]["median"] >= BULK_RATE_MIN,
            "bulk_with_own_ids_at_least_40000": bulk["with_own_ids"]["median"] >= BULK_RATE_MIN,
            "p99_at_most_25_ms": measurement["latency"]["p99_ms"] <= P99_MS_MAX,
        },
    }


def show_gateway(results: Mapping[str, Any], console: Console) -> None:
    """Print the results as a table for a person."""
    measurement = results["gateway"]
    table = Table(title="HTTP, one gateway, the broker and the load on the same machine")
    table.add_column("what", justify="left")
    for name in ("median", "low", "high"):
        table.add_column(name, justify="right")
    bulk = measurement["bulk_events_per_second"]
    rows = measurement["requests_per_second"] | {
        "bulk, events": bulk["bulk"],
        "bulk with own ids and times, events": bulk["with_own_ids"],
    }
    for name, spread in rows.items():
        table.add_row(f"{name} /s", *spread_columns(spread))
    console.print(table)
    latency = measurement["latency"]
    console.print(
        f"gateway to bare {measurement['gateway_to_bare']} ×; at {latency['rate']:g}/s p50 "
        f"{latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"
    )
