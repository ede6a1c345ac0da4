"""`python -m bench`: measure on this machine, print, keep the results. Exit status 0: measured; 2: could not."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaException
from redis.exceptions import RedisError
from rich.console import Console

from bench import report
from bench.figures import CannotMeasure
from bench.latency import measure_latency
from bench.stack import ROOT, open_place
from bench.throughput import Run, Workloads, measure_naive, measure_processor, summary
from consentry.domain.errors import ConsentryError
from consentry.local.stack import LocalStack
from consentry.ops.clock import system_clock

EXIT_CANNOT_MEASURE = 2
RESULTS = ROOT / "bench" / "results"

QUICK = {"events": 30_000, "naive_events": 3_000, "repeats": 1, "seconds": 5.0, "warm_up": 2.0, "pauses": 10}
"""What --quick makes of whatever is not given."""
DEFAULT = {"events": 200_000, "naive_events": 20_000, "repeats": 2, "seconds": 20.0, "warm_up": 5.0, "pauses": 50}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; the exit status."""
    options = parse(arguments)
    errors = Console(stderr=True, highlight=False)
    # A broker that has just started asks clients to wait a little; that is no news.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    try:
        run(options, errors)
    except (CannotMeasure, ConsentryError, KafkaException, RedisError, OSError) as error:
        errors.print(f"bench: could not measure: {error}", style="red", markup=False, soft_wrap=True)
        return EXIT_CANNOT_MEASURE
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, each from the command line, else from --quick or the default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer events, under a minute: a look, no figure to quote")
    parser.add_argument("--events", type=int, help="events for the processor in each repeat")
    parser.add_argument("--naive-events", type=int, help="how many of the same events the naive peer gets")
    parser.add_argument("--naive-client", choices=("asyncio", "blocking"), default="asyncio", help="the peer's client")
    parser.add_argument("--repeats", type=int, help="how often each is measured, in turn")
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second for latency")
    parser.add_argument("--seconds", type=float, help="how long latency is measured")
    parser.add_argument("--warm-up", type=float, help="seconds of the same rate before that, not counted")
    parser.add_argument("--pauses", type=int, help="pauses, and as many lifts, during that time")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same events")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else DEFAULT).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if min(options.events, options.naive_events, options.repeats, options.rate, options.seconds) <= 0:
        parser.error("events, repeats, rate and seconds have to be above 0")
    return options


def run(options: argparse.Namespace, console: Console) -> None:
    """Start a stack, measure throughput and latency, print and keep the results."""
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="consentry-bench-") as directory:
        stack = LocalStack(Path(directory), cache=_cache(), ephemeral=True)
        console.print("Starting a broker, a table and a registry …")
        with stack as addresses:
            services = {"broker": stack.processes["kafka"], "redis": stack.processes["redis"]}
            work = Workloads(options.events, seed=options.seed, now=system_clock())
            ours: list[Run] = []
            naive: list[Run] = []
            for repeat in range(options.repeats):
                place = open_place(addresses, f"bench-{repeat}")
                events = work.of(place)
                ours.append(measure_processor(place, events, services))
                console.print(f"  processor: {ours[-1].rate:,.0f} events/s")
                few = events.first(options.naive_events)
                naive.append(measure_naive(place, few, services, client=options.naive_client))
                console.print(f"  naive peer: {naive[-1].rate:,.0f} events/s")
            console.print(f"Latency: {options.warm_up + options.seconds:g} s at {options.rate:g} events/s …")
            place = open_place(addresses, "bench-latency")
            latency = measure_latency(
                place,
                services,
                rate=options.rate,
                warm_up=options.warm_up,
                seconds=options.seconds,
                pauses=options.pauses,
                seed=options.seed,
            )
            about = {"machine": machine, "versions": report.versions(place), "settings": report.settings(place)}
    results = report.document(
        about=about,
        throughput=summary(ours, naive, client=options.naive_client),
        latency=latency,
        at=datetime.now(tz=UTC),
    )
    print(json.dumps(results, indent=2))
    report.show(results, console)
    console.print(f"Kept in {report.write(results, RESULTS)}", soft_wrap=True)


def _cache() -> Path:
    """Where `consentry local` keeps the programs that it downloads."""
    told = os.environ.get("CONSENTRY_CACHE_DIR")
    if told:
        return Path(told)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "consentry"


if __name__ == "__main__":
    sys.exit(main())
