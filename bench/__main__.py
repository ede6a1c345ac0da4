"""`python -m bench`: measure on this machine, print the results and keep them.

Exit status 0: measured; 1: `verify` or `purge` measurement a broken promise; 2: could not measure.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from redis.exceptions import RedisError
from rich.console import Console

from bench import cold, producer, report
from bench.figures import CannotMeasure, NotAsPromised
from bench.filters import FilterSizes, measure_filters, show_filters
from bench.filters import document as filters_document
from bench.gateway import document as gateway_document
from bench.gateway import measure_gateway, show_gateway
from bench.latency import measure_latency
from bench.purge import FILES_MIN, PurgeSizes, measure_purge, show_purge
from bench.purge import document as purge_document
from bench.rules import OPT_OUTS, RuleSizes, measure_rules
from bench.stack import ROOT, BenchNamespace, open_namespace
from bench.throughput import Run, Workloads, measure_naive, measure_processor, summary
from bench.verify import PLANTED_MAX, VerifySizes, measure_verify, show_verify
from bench.verify import document as verify_document
from consentry.domain.errors import ConsentryError
from consentry.local.stack import LocalStack
from consentry.local.state import Addresses
from consentry.ops.clock import system_clock
from consentry.ops.logs import set_up_logs

EXIT_NOT_AS_PROMISED = 1
EXIT_CANNOT_MEASURE = 2
RESULTS = ROOT / "bench" / "results"

QUICK = {
    "events": 30_000,
    "naive_events": 3_000,
    "repeats": 1,
    "seconds": 5.0,
    "warm_up": 2.0,
    "pauses": 10,
    "rows": 100_000,
    "members": 20_000,
    "reads": 100_000,
    "planted": 20,
    "files": 40,
    "kills": 4,
}
"""The sizes with --quick, where the command line gives no other."""
DEFAULT = {
    "events": 200_000,
    "naive_events": 20_000,
    "repeats": 2,
    "seconds": 20.0,
    "warm_up": 5.0,
    "pauses": 50,
    "rows": 1_000_000,
    "members": 200_000,
    "reads": 10_000_000,
    "planted": 100,
    "files": 200,
    "kills": 20,
}
COLD_DEFAULT = {"members": 1_000_000, "repeats": 3}
"""The sizes for a cold trainer, where they differ from the above."""
FILTERS_QUICK = {"rows": 200_000, "members": 40_000}
FILTERS_DEFAULT = {"rows": 5_000_000, "members": 1_000_000, "repeats": 5}
"""The sizes for the filters, where they differ from the above."""
PURGE_DEFAULT = {"rows": 5_000_000, "members": 1_000_000, "repeats": 3}
"""The sizes for a purge, where they differ from the above; a tenth of the members is removed."""
HISTORIES = 20_000
QUESTIONS = 2_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurements, and return the exit status."""
    options = parse(arguments)
    errors = Console(stderr=True, highlight=False)
    # A broker that has just started asks clients to wait a little; nobody needs to see that.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    measurements = {
        "all": run,
        "rules": run_rules,
        "producer": run_producer,
        "gateway": run_gateway,
        "filters": run_filters,
        "cold": run_cold,
        "verify": run_verify,
        "purge": run_purge,
    }
    try:
        measurements[options.what](options, errors)
    except NotAsPromised as error:
        errors.print(f"bench: not as promised: {error}", style="red", markup=False, soft_wrap=True)
        return EXIT_NOT_AS_PROMISED
    except (CannotMeasure, ConsentryError, KafkaException, RedisError, OSError) as error:
        errors.print(
            f"bench: could not measure: {error}", style="red", markup=False, soft_wrap=True
        )
        return EXIT_CANNOT_MEASURE
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, each from the command line, else from --quick or the default."""
    options = _parser().parse_args(arguments)
    _set_defaults(options)
    _check(options, _parser())
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", "rules", "producer", "gateway", "filters", "cold", "verify", "purge"),
        default="all",
        help="rules: without any server",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer events, under a minute: shows that it works, gives no figure to quote",
    )
    parser.add_argument("--events", type=int, help="events for the processor in each repeat")
    parser.add_argument(
        "--naive-events", type=int, help="the number of these events for the naive peer"
    )
    parser.add_argument(
        "--naive-client",
        choices=("asyncio", "blocking"),
        default="asyncio",
        help="the peer's client",
    )
    parser.add_argument("--repeats", type=int, help="times that each is measured, in turn")
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second for latency")
    parser.add_argument("--seconds", type=float, help="seconds of measuring latency")
    parser.add_argument(
        "--warm-up", type=float, help="seconds at the same rate before that, not counted"
    )
    parser.add_argument("--pauses", type=int, help="pauses, and as many lifts, during that time")
    parser.add_argument("--rows", type=int, help="rows of the table that is decided at once")
    parser.add_argument("--members", type=int, help="members that its rows belong to")
    parser.add_argument("--reads", type=int, help="members that a training run reads, for verify")
    parser.add_argument("--planted", type=int, help="the number of these that had opted out")
    parser.add_argument("--files", type=int, help="files with the rows, for purge")
    parser.add_argument("--kills", type=int, help="times that the purge is killed at work")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same events")
    return parser


def _set_defaults(options: argparse.Namespace) -> None:
    defaults = DEFAULT
    filters_defaults = FILTERS_DEFAULT
    if options.quick:
        defaults = QUICK
        filters_defaults = FILTERS_QUICK
    if options.what == "filters":
        defaults = defaults | filters_defaults
    if options.what == "cold" and not options.quick:
        defaults = defaults | COLD_DEFAULT
    if options.what == "purge" and not options.quick:
        defaults = defaults | PURGE_DEFAULT
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program with a usage error where a size cannot be measured."""
    counts = (options.events, options.naive_events, options.repeats, options.rows)
    if min(*counts, options.rate, options.seconds) <= 0:
        parser.error("events, repeats, rate, seconds and rows have to be above 0")
    if options.members < OPT_OUTS:
        parser.error(f"members have to be at least {OPT_OUTS}: that many opt out")
    if not 0 < options.planted <= min(PLANTED_MAX, options.reads // 10):
        parser.error(
            f"planted has to be above 0, at most {PLANTED_MAX}, and at most a tenth of the reads"
        )
    if options.kills <= 0 or not FILES_MIN <= options.files <= options.rows:
        parser.error(
            f"kills have to be above 0, and files at least {FILES_MIN} and no more than rows"
        )


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure the rules, and on a stack of its own throughput and latency."""
    machine = report.machine()
    rules = rules_of(options, console)
    with tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory:
        stack = LocalStack(Path(directory), cache=_cache(), ephemeral=True)
        console.print("Starting a broker, a table and a registry …")
        with stack as addresses:
            services = {"broker": stack.processes["kafka"], "redis": stack.processes["redis"]}
            throughput = _measure_throughput(options, addresses, services, console)
            total_seconds = options.warm_up + options.seconds
            console.print(f"Latency: {total_seconds:g} s at {options.rate:g} events/s …")
            namespace = open_namespace(addresses, "bench-latency")
            latency = measure_latency(
                namespace,
                services,
                rate=options.rate,
                warm_up=options.warm_up,
                seconds=options.seconds,
                pauses=options.pauses,
                seed=options.seed,
            )
            about = _about(machine, namespace)
    results = report.document(
        about=about, rules=rules, throughput=throughput, latency=latency, at=_now()
    )
    _print_report(results, console)


def _measure_throughput(
    options: argparse.Namespace,
    addresses: Addresses,
    services: dict[str, int],
    console: Console,
) -> dict[str, Any]:
    work = Workloads(options.events, seed=options.seed, now=system_clock())
    ours: list[Run] = []
    naive: list[Run] = []
    for repeat in range(options.repeats):
        namespace = open_namespace(addresses, f"bench-{repeat}")
        events = work.of(namespace)
        ours.append(measure_processor(namespace, events, services))
        console.print(f"  processor: {ours[-1].rate:,.0f} events/s")
        few = events.first(options.naive_events)
        naive.append(measure_naive(namespace, few, services, client=options.naive_client))
        console.print(f"  naive peer: {naive[-1].rate:,.0f} events/s")
    return summary(ours, naive, client=options.naive_client)


def _about(machine: dict[str, Any], namespace: BenchNamespace) -> dict[str, Any]:
    return {
        "machine": machine,
        "versions": report.versions(namespace),
        "settings": report.settings(namespace),
    }


def run_rules(options: argparse.Namespace, console: Console) -> None:
    """Measure the rules, which need no server."""
    about = {"machine": report.machine(), "versions": report.packages(), "settings": {}}
    rules = rules_of(options, console)
    _print_report(report.document(about=about, rules=rules, at=_now()), console)


def run_producer(options: argparse.Namespace, console: Console) -> None:
    """Measure the SDK beside a raw client on a stack of its own."""
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory:
        stack = LocalStack(Path(directory), cache=_cache(), ephemeral=True)
        console.print("Starting a broker, a table and a registry …")
        with stack as addresses:
            namespace = open_namespace(addresses, "bench-producer")
            measurement = producer.measure_producer(
                namespace,
                options.events,
                repeats=options.repeats,
                seed=options.seed,
                now=system_clock(),
            )
            about = _about(machine, namespace)
    results = producer.document(about, measurement, at=_now())
    print(json.dumps(results, indent=2))
    producer.show(results, console)
    _keep(results, console)


def run_gateway(options: argparse.Namespace, console: Console) -> None:
    """Measure the gateway beside a bare peer on a stack of its own."""
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory:
        stack = LocalStack(Path(directory), cache=_cache(), ephemeral=True)
        console.print("Starting a broker, a table and a registry …")
        with stack as addresses:
            namespace = open_namespace(addresses, "bench-gateway")
            measurement = measure_gateway(
                namespace,
                {"broker": stack.processes["kafka"]},
                requests=options.events // 10,
                bulks=max(2, options.events // 20_000),
                seconds=options.seconds,
                repeats=options.repeats,
                seed=options.seed,
            )
            about = _about(machine, namespace)
    results = gateway_document(about, measurement, at=_now())
    print(json.dumps(results, indent=2))
    show_gateway(results, console)
    _keep(results, console)


def run_filters(options: argparse.Namespace, console: Console) -> None:
    """Measure the filters beside bare joins of the same rows."""
    about = {"machine": report.machine(), "versions": report.packages()}
    console.print(
        f"Filters: {options.rows:,} rows, {options.members:,} excluded, {options.repeats} times …"
    )
    sizes = FilterSizes(rows=options.rows, members=options.members)
    measurement = measure_filters(sizes, repeats=options.repeats, seed=options.seed)
    results = filters_document(about, measurement, at=_now())
    print(json.dumps(results, indent=2))
    show_filters(results, console)
    _keep(results, console)


def run_cold(options: argparse.Namespace, console: Console) -> None:
    """Measure the start of a trainer with a bundle."""
    about = {"machine": report.machine(), "versions": report.packages()}
    console.print(f"Cold trainer: {options.members:,} members, {options.repeats} times …")
    measurement = cold.measure_cold(options.members, repeats=options.repeats)
    results = cold.document(about, measurement, at=_now())
    print(json.dumps(results, indent=2))
    cold.show_cold(results, console)
    _keep(results, console)


def run_verify(options: argparse.Namespace, console: Console) -> None:
    """Measure the certificate of a run and its verification.

    Raises NotAsPromised, after the results are kept, where a promise is broken.
    """
    about = {"machine": report.machine(), "versions": report.packages()}
    set_up_logs(style="text", level="error")
    console.print(f"Verify: {options.reads:,} reads, {options.planted} planted …")
    measurement = measure_verify(VerifySizes(options.reads, options.planted), seed=options.seed)
    results = verify_document(about, measurement, at=_now())
    print(json.dumps(results, indent=2))
    show_verify(results, console)
    _keep_and_check(results, console)


def run_purge(options: argparse.Namespace, console: Console) -> None:
    """Measure a purge, undisturbed and killed again and again.

    Raises NotAsPromised, after the results are kept, where a promise is broken.
    """
    about = {
        "machine": report.machine(),
        "versions": report.packages() | {"polars": version("polars")},
    }
    sizes = PurgeSizes(options.rows, options.files, options.members, options.kills)
    console.print(
        f"Purge: {sizes.rows:,} rows, {sizes.files:,} files, {options.repeats} times, "
        f"{sizes.kills} kills …"
    )
    measurement = measure_purge(sizes, repeats=options.repeats, seed=options.seed)
    results = purge_document(about, measurement, at=_now())
    print(json.dumps(results, indent=2))
    show_purge(results, console)
    _keep_and_check(results, console)


def _keep(results: dict[str, Any], console: Console) -> None:
    console.print(f"Kept in {report.write(results, RESULTS)}", soft_wrap=True)


def _keep_and_check(results: dict[str, Any], console: Console) -> None:
    """Keep the results, and raise NotAsPromised if one of `ok` is False."""
    _keep(results, console)
    broken = [name for name, is_kept in results["ok"].items() if not is_kept]
    if broken:
        raise NotAsPromised(", ".join(broken))


def rules_of(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure the rules, and return their part of the results."""
    console.print(
        f"Rules: {options.rows:,} rows of {options.members:,} members, {options.repeats} times …"
    )
    sizes = RuleSizes(
        histories=HISTORIES, questions=QUESTIONS, rows=options.rows, members=options.members
    )
    return measure_rules(sizes, repeats=options.repeats, seed=options.seed)


def _print_report(results: dict[str, Any], console: Console) -> None:
    """Print the results, for a program and for a person, and keep them."""
    print(json.dumps(results, indent=2))
    report.show(results, console)
    _keep(results, console)


def _now() -> datetime:
    return datetime.now(tz=UTC)


def _cache() -> Path:
    """Return the directory in which `consentry local` keeps the programs that it downloads."""
    own_cache = os.environ.get("CONSENTRY_CACHE_DIR")
    if own_cache:
        return Path(own_cache)
    shared_cache = os.environ.get("XDG_CACHE_HOME")
    if shared_cache:
        return Path(shared_cache) / "consentry"
    return Path.home() / ".cache" / "consentry"


if __name__ == "__main__":
    sys.exit(main())
