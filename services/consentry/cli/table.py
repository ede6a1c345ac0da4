"""`consentry table …`: inspect the consent table, compare it with the log, rebuild it.

It is compared with followers too.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from consentry.cli.connections import count_partitions
from consentry.cli.consent_table import open_table, read_member
from consentry.cli.options import JsonOption
from consentry.cli.settings import load_settings
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.events import Fact
from consentry.domain.values import parse_member_id
from consentry.domain.wording import moment_of
from consentry.kafka.clients import read_all
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.table.redis_table import RedisTable
from consentry.wire.records import DIGEST_BITS, record_digest, version_of
from consentry.wire.schemas import RECORDS, topic_name

app = typer.Typer(
    name="table",
    help="Inspect, verify and rebuild the consent table.",
    no_args_is_help=True,
    add_completion=False,
)


_ATTEMPTS_MAX = 5


@app.command()
def get(
    member: Annotated[str, typer.Argument(help="Pseudonym of the member.")],
    as_json: JsonOption = False,
) -> None:
    """Print a member's record as the consent table holds it.

    Exit 0: there is a record. 1: there is none. 2: cannot tell.
    """
    record = read_member(load_settings(), parse_member_id(member))
    version = None
    facts: list[dict[str, Any]] = []
    if record:
        version = record.version
        facts = [_fact_fields(fact) for fact in record.facts]
    if as_json:
        typer.echo(json.dumps({"member": member, "version": version, "facts": facts}))
    elif record is None:
        typer.echo(f"no record of {member}")
    else:
        typer.echo(f"{member}  version {record.version}")
        for fact in facts:
            typer.echo(
                f"  {fact['version']:>3}  {fact['kind']:<22} {fact['name']:<24} effective "
                f"{fact['effective_at']}"
            )
    if record:
        raise typer.Exit(0)
    raise typer.Exit(1)


def _fact_fields(fact: Fact) -> dict[str, Any]:
    return {
        "version": fact.version,
        "kind": fact.kind.name,
        "name": fact.name,
        "effective_at": moment_of(fact.effective_at).isoformat(),
        "recorded_at": moment_of(fact.recorded_at).isoformat(),
        "observed_version": fact.observed_version,
    }


@app.command()
def stats(as_json: JsonOption = False) -> None:
    """Print what each partition of the consent table holds, and how old it is."""
    settings = load_settings()
    partitions = count_partitions(settings)
    rows: list[dict[str, Any]] = []
    with open_table(settings, partitions) as table:
        for partition in range(partitions):
            meta = table.meta(partition)
            age = None
            if meta.frontier_at is not None:
                age = round((system_clock() - meta.frontier_at) / 1e6, 1)
            members = sum(1 for _ in table.scan(partition))
            rows.append(
                {
                    "partition": partition,
                    "members": members,
                    "next_offset": meta.next_offset,
                    "generation": meta.generation,
                    "age_seconds": age,
                    "tainted": meta.tainted,
                }
            )
    if as_json:
        members = sum(row["members"] for row in rows)
        typer.echo(json.dumps({"partitions": rows, "members": members}))
        return
    typer.echo("partition    members  next offset  age (s)  generation")
    for row in rows:
        mark = ""
        if row["tainted"]:
            mark = "  TAINTED"
        next_offset = _dash_if_none(row["next_offset"])
        age_text = _dash_if_none(row["age_seconds"])
        generation = (row["generation"] or "-")[:12]
        typer.echo(
            f"{row['partition']:>9} {row['members']:>10} {next_offset:>12} {age_text:>8}  "
            f"{generation}{mark}"
        )


def _dash_if_none(value: Any) -> Any:
    if value is None:
        return "-"
    return value


@app.command()
def verify(
    follower: Annotated[
        list[str] | None,
        typer.Option(help="Metrics address of a trainer, HOST:PORT; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare consent table, log and followers by digest, and print differences.

    Events that are still on their way make a difference, so a difference is looked at again for
    some seconds before it is reported.

    Exit 0: all are equal. 1: they differ. 2: cannot tell.
    """

    settings = load_settings()
    addresses = follower or []
    for address in addresses:
        if ":" not in address:
            raise InvalidInput(
                f"The follower {address!r} is not HOST:PORT.",
                code="input.follower",
                fix="write HOST:PORT",
            )
    differing: dict[str, list[int]] = {}
    for attempt in range(_ATTEMPTS_MAX):
        if attempt:
            time.sleep(1.0)
        digests = _digests(settings, addresses)
        differing = {name: _differing(of_one, digests["table"]) for name, of_one in digests.items()}
        if not any(differing.values()):
            break
    is_equal = not any(differing.values())
    if as_json:
        fields = {
            "equal": is_equal,
            "compared": sorted(differing),
            "differing_partitions": differing,
        }
        typer.echo(json.dumps(fields))
    else:
        for name, partitions in differing.items():
            result = "equal"
            if partitions:
                result = f"differs in partitions {partitions}"
            typer.echo(f"{name:<24} {result}")
    if is_equal:
        raise typer.Exit(0)
    raise typer.Exit(1)


def _differing(digests: dict[int, str], in_table: dict[int, str]) -> list[int]:
    """Return the partitions whose digest is not the table's."""
    return [partition for partition, digest in digests.items() if digest != in_table[partition]]


def _digests(settings: Settings, followers: list[str]) -> dict[str, dict[int, str]]:
    partitions = count_partitions(settings)
    with open_table(settings, partitions) as table:
        in_table = {
            partition: _sum_of_digests(table.scan(partition)) for partition in range(partitions)
        }
    newest: dict[int, dict[bytes, bytes]] = {partition: {} for partition in range(partitions)}
    for message in read_all(settings.kafka(), topic_name(settings.namespace, RECORDS)):
        if message.key and message.value:
            known = newest[message.partition].get(message.key)
            if known is None or version_of(known) <= version_of(message.value):
                newest[message.partition][message.key] = message.value
    in_log = {partition: _sum_of_digests(records.items()) for partition, records in newest.items()}
    digests = {"table": in_table, "log": in_log}
    for address in followers:
        digests[address] = _follower_digests(address)
    return digests


def _sum_of_digests(records: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the digest of a partition's records in any order, in hexadecimal digits."""

    total = sum(record_digest(member, raw) for member, raw in records)
    return f"{total % (1 << DIGEST_BITS):032x}"


def _follower_digests(address: str) -> dict[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}/digest", timeout=10) as answer:
            digests = json.load(answer)["digests"]
            return {int(partition): str(digest) for partition, digest in digests.items()}
    except (urllib.error.URLError, ValueError, KeyError, OSError) as error:
        raise Unavailable(
            f"The follower at {address} did not report its digests ({type(error).__name__}).",
            code="follower.unavailable",
            fix="name the metrics address of a running trainer; its log shows it at the start",
        ) from error


@app.command()
def rebuild(
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait until the table is whole again.")
    ] = 300.0,
) -> None:
    """Have the consent table rebuilt from the records topic.

    The running processor does it. No member is answered for until it is done.
    """
    settings = load_settings()
    partitions = count_partitions(settings)
    with open_table(settings, partitions) as table:
        table.check()
        _require_processor(table, partitions)
        for partition in range(partitions):
            claim = table.claim(partition, min_epoch=system_clock() // 1000)
            table.clear(partition, epoch=claim.epoch)
        typer.echo(f"emptied {partitions} partitions; the processor rebuilds them")
        until = time.monotonic() + timeout
        while missing := _unbuilt(table, partitions):
            if time.monotonic() > until:
                raise Unavailable(
                    f"{len(missing)} partitions are not built after {timeout:.0f} s.",
                    code="table.rebuild_timeout",
                    fix="check the processor's log; it goes on by itself",
                )
            time.sleep(0.2)
    typer.echo("the table is whole")


def _unbuilt(table: RedisTable, partitions: int) -> list[int]:
    without_generation = []
    for partition in range(partitions):
        if table.meta(partition).generation is None:
            without_generation.append(partition)
    return without_generation


def _require_processor(table: RedisTable, partitions: int) -> None:
    """Raise Unavailable where no processor keeps the table: it moves a frontier every second.

    Its consumer group would not show that: a worker that was killed stays in it for some time.
    """
    before = [table.meta(partition).frontier_at for partition in range(partitions)]
    until = time.monotonic() + 5.0
    while [table.meta(partition).frontier_at for partition in range(partitions)] == before:
        if time.monotonic() > until:
            raise Unavailable(
                "No processor keeps the table, so nobody would rebuild it. Nothing was emptied.",
                code="table.no_processor",
                fix="start `consentry processor`, then ask again",
            )
        time.sleep(0.2)
