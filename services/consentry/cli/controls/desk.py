"""What every control goes through before it is sent: the file it stands in, what speaks against it,
and the topic.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from confluent_kafka import Producer

from consentry.cli.approval import say_proposed
from consentry.cli.connections import count_partitions, load_settings, open_catalog, read_controls
from consentry.cli.gateway_client import GatewayClient
from consentry.domain.control_checks import ControlConflict
from consentry.domain.controls import Control, Controls, PauseLifted, PolicyPublished, Scope
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.openings import openings
from consentry.forms.yaml import line_of
from consentry.kafka.clients import producer_config, send
from consentry.ops.settings import Settings
from consentry.wire.controls import control_key, write_control
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS, topic_name

INT_MAX = (1 << 31) - 1

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only tell what it would change, member by member; nothing is sent."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class ControlFile(NamedTuple):
    """A file that somebody wrote a control in."""

    path: str
    text: str


def read_file(path: Path) -> ControlFile:
    """The text of a file. Raises InvalidInput where it cannot be read."""
    try:
        return ControlFile(str(path), path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The file {str(path)!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable text file",
        ) from error


def refuse_both_ways(context: typer.Context) -> None:
    """Raise InvalidInput where a file and options say what the control is: one of them would be
    ignored.
    """
    harmless = {"file", "dry_run", "as_json"}
    given = [
        name.replace("_", "-")
        for name in context.params
        if name not in harmless
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise InvalidInput(
            f"--file says what is to be sent, and so {'does' if len(given) == 1 else 'do'} "
            f"{', '.join(sorted(given))}.",
            code="input.file_and_options",
            fix="write everything into the file, or leave --file out",
        )


def refuse(objection: ControlConflict, form: ControlFile | None) -> NoReturn:
    """Raise InvalidInput for an objection, naming file and line where the control stands in a
    file.
    """

    if form is None:
        message = f"{objection.problem[0].upper()}{objection.problem[1:]}."
    else:
        line = line_of(form.text, objection.field)
        message = f"{form.path}, line {line}, {objection.field}: {objection.problem}."
    raise InvalidInput(message, code=objection.code, fix=objection.fix)


def warn_of_voided_opt_ins(lift: PauseLifted, log: Sequence[Control]) -> None:
    """Say on standard error that a second lift, or one of an unreadable control, ends opt-ins for
    nothing.
    """

    if not lift.voids_opt_ins:
        return
    known = [one for one in log if isinstance(one, PauseLifted) and one.pause == lift.pause]
    if any(one.version >= lift.version for one in known):
        typer.echo(
            f"note: {lift.pause} was lifted before; this makes the opt-ins since then void too",
            err=True,
        )
    elif lift.pause.startswith("unreadable-"):
        typer.echo("note: opt-ins everywhere become void; --opt-ins KEEP leaves them", err=True)


def warn_of_unknown_purposes(scope: Scope, log: Sequence[Control]) -> None:
    """A slip of the finger would pause a purpose that nobody uses."""
    for purpose in scope.purposes or ():
        warn_of_unknown_purpose(purpose, log)


def warn_of_unknown_purpose(purpose: str, log: Sequence[Control]) -> None:
    """Say on standard error that no policy names a purpose, where some policy names any."""

    known = {
        terms.purpose
        for policy in log
        if isinstance(policy, PolicyPublished)
        for terms in policy.terms
    }
    if known and purpose not in known:
        typer.echo(
            f"note: no policy has terms for the purpose {purpose!r}; they have "
            f"{', '.join(sorted(known))}",
            err=True,
        )


def open_settings() -> Settings:
    """The settings of the command. Who has a gateway needs no addresses beside it."""
    given = Settings.parse()
    return given if given.gateway_url and not given.kafka_bootstrap else load_settings()


def read_log(settings: Settings) -> list[Control]:
    """Every control so far."""

    return read_controls(settings)


def log_to_judge_by(settings: Settings, *, dry_run: bool) -> list[Control] | None:
    """Every control so far; None where only a gateway is known, which deciders by itself.

    Raises Refused for a dry run then: it counts members, for which the table is needed.
    """
    if not settings.gateway_url or settings.kafka_bootstrap:
        return read_log(settings)
    if dry_run:
        raise Refused(
            "A dry run reads the controls and the table, and the settings name a gateway only.",
            code="settings.address_missing",
            fix="set CONSENTRY_KAFKA_BOOTSTRAP, _REDIS_URL and _REGISTRY_URL too, or leave "
            "--dry-run out",
        )
    return None


def hand_in(
    control: Control,
    path: str,
    form: Any,
    settings: Settings,
    log: Sequence[Control] | None,
    *,
    as_json: bool,
) -> None:
    """Bring a control on its way: by the gateway where the settings name one, else straight to the
    topic.

    Raises Refused where it would widen use and no second person could look at it.
    """
    if settings.gateway_url:
        answer = GatewayClient.open(settings).post(path, form)
        if answer["state"] == "awaiting_approval":
            say_proposed(answer, as_json=as_json)
        else:
            kind = type(control).__name__
            said = f"accepted: controls offset {answer['offset']}, {kind} {answer['event_id']}"
            typer.echo(json.dumps({"sent": True, "kind": kind, **answer}) if as_json else said)
        return
    known = Controls(iso_jurisdictions()).after(*(log or ()))
    opens = openings(control, known, now=control.recorded_at).words
    if opens and settings.profile == "production":
        raise Refused(
            f"This would widen use ({opens[0]}), and takes a second person.",
            code="approval.needed",
            fix="set CONSENTRY_GATEWAY_URL and CONSENTRY_GATEWAY_CREDENTIAL_FILE: the gateway "
            "keeps it for approval",
        )
    send_control(control, settings, as_json=as_json)


def send_control(control: Control, settings: Settings, *, as_json: bool = False) -> None:
    """Send a control, wait until it is durable, and say where it stands.

    Raises Refused or Unavailable.
    """

    count_partitions(settings)
    topic = topic_name(settings.namespace, CONTROLS)
    value = write_control(control, open_catalog(settings))
    producer = Producer(producer_config(settings.kafka(), "consentry-desk"))
    [(_, offset)] = send(producer, topic, [(control_key(control), value)])
    kind, event_id = type(control).__name__, str(uuid.UUID(bytes=control.event_id))
    if as_json:
        typer.echo(
            json.dumps(
                {"sent": True, "topic": topic, "offset": offset, "kind": kind, "event_id": event_id}
            )
        )
    else:
        typer.echo(f"accepted: {topic} offset {offset}, {kind} {event_id}")
