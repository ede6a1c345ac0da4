"""`consentry emit …`: send one member event to Kafka and wait until it is accepted."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from consentry.cli.connections import count_partitions, open_catalog, read_controls
from consentry.cli.controls.desk import warn_of_unknown_purpose
from consentry.cli.event_times import EventTimes
from consentry.cli.options import EffectiveOption, MemberArgument
from consentry.cli.settings import load_settings, load_token_keys
from consentry.domain.errors import ConsentryError, InvalidInput
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated
from consentry.domain.values import AgeBand, Choice, parse_member_id, parse_name
from consentry.producer import ConsentProducer
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import MEMBER_EVENTS, topic_name

app = typer.Typer(
    name="emit",
    help="Send one member event and wait until it is accepted.",
    no_args_is_help=True,
    add_completion=False,
)

PurposeOption = Annotated[str, typer.Option(help="What the data would be used for.")]


@app.command("opt-out")
def opt_out(
    member: MemberArgument,
    purpose: PurposeOption = "genai_training",
    effective: EffectiveOption = None,
) -> None:
    """Send one member's opt-out or objection, and print its offset. It always applies."""
    _choose(member, purpose, Choice.OPT_OUT, effective, None)


@app.command("opt-in")
def opt_in(
    member: MemberArgument,
    purpose: PurposeOption = "genai_training",
    observed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=(1 << 63) - 1,
            help="Version of the record that the member had seen. Opt-outs after it stand.",
        ),
    ] = None,
    effective: EffectiveOption = None,
) -> None:
    """Send one member's opt-in, and print its offset.

    It cancels only opt-outs that the member had seen: give the record's version with --observed.
    """
    _choose(member, purpose, Choice.OPT_IN, effective, observed)


@app.command()
def relocate(
    member: MemberArgument,
    jurisdiction: Annotated[str, typer.Argument(help="ISO 3166 code, such as HK or US-CA.")],
    age_band: Annotated[
        AgeBand, typer.Option(help="Whether the member is of age there.")
    ] = AgeBand.UNKNOWN,
    effective: EffectiveOption = None,
) -> None:
    """Send where one member lives now, and print its offset."""
    if not iso_jurisdictions().is_code(jurisdiction):
        raise InvalidInput(
            f"The jurisdiction {jurisdiction[:80]!r} is not an ISO 3166 code: a member lives in "
            "one place.",
            code="input.jurisdiction",
            fix="write a code such as HK or US-CA",
        )
    times = EventTimes.parse(effective)
    _send(
        MemberRelocated(
            event_id=uuid.uuid4().bytes,
            member=parse_member_id(member),
            jurisdiction=jurisdiction,
            effective_at=times.effective_at,
            recorded_at=times.recorded_at,
            age_band=age_band,
            source="cli",
        )
    )


@app.command()
def erase(member: MemberArgument, effective: EffectiveOption = None) -> None:
    """Send one member's erasure. It is final, and opens a purge order."""
    times = EventTimes.parse(effective)
    _send(
        MemberErased(
            event_id=uuid.uuid4().bytes,
            member=parse_member_id(member),
            effective_at=times.effective_at,
            recorded_at=times.recorded_at,
            source="cli",
        )
    )


def _choose(
    member: str, purpose: str, choice: Choice, effective: str | None, observed: int | None
) -> None:
    times = EventTimes.parse(effective)
    _send(
        ConsentChanged(
            event_id=uuid.uuid4().bytes,
            member=parse_member_id(member),
            purpose=parse_name(purpose, what="purpose"),
            choice=choice,
            effective_at=times.effective_at,
            recorded_at=times.recorded_at,
            observed_version=observed,
            legal_basis="OTHER",
            source="cli",
        )
    )
    _warn_of_unknown_purpose(purpose)


def _warn_of_unknown_purpose(purpose: str) -> None:
    """Note that no policy names the purpose, as where it is misspelt: the choice decides nothing.

    The note comes once the choice is durable: nothing may delay an opt-out.
    """
    try:
        log = read_controls(load_settings())
    except ConsentryError as error:
        typer.echo(
            f"note: the policies could not be read, so the purpose {purpose!r} was not checked "
            f"[{error.code}]",
            err=True,
        )
        return
    warn_of_unknown_purpose(purpose, log)


def _send(event: ConsentChanged | MemberRelocated | MemberErased) -> None:
    settings, keys = load_settings(), None
    count_partitions(settings)  # raises where the topic is missing, which has to be mended first
    try:
        keys = load_token_keys(settings)
    except InvalidInput as error:
        # Whoever may not read the gateway's secret may still record an opt-out.
        typer.echo(f"note: no token will be given: {error}", err=True)
    with ConsentProducer(
        settings.kafka(),
        source="consentry-emit",
        catalog=open_catalog(settings),
        namespace=settings.namespace,
        token_keys=keys,
    ) as producer:
        accepted = producer.send(event)
    topic = topic_name(settings.namespace, MEMBER_EVENTS)
    typer.echo(
        f"accepted: {topic} partition {accepted.partition} offset {accepted.offset}, event "
        f"{accepted.event_id}"
    )
    if keys is not None:
        typer.echo(f"token: {accepted.token}")
