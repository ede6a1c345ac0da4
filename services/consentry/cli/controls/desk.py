"""What every control goes through before it is sent: the file it stands in, what speaks against it, and the topic."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer

from consentry.domain.errors import InvalidInput

if TYPE_CHECKING:
    from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished, Scope
    from consentry.ops.settings import Settings

INT_MAX = (1 << 31) - 1

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only tell what it would change, member by member; nothing is sent.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class Form(NamedTuple):
    """A file that somebody wrote a control in."""

    path: str
    text: str


class Objection(NamedTuple):
    """Why a control would not do what it is meant to: the field, what is wrong (a clause), the cure, a stable code."""

    field: str
    problem: str
    fix: str
    code: str


def read_file(path: Path) -> Form:
    """The text of a file. Raises InvalidInput where it cannot be read."""
    try:
        return Form(str(path), path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The file {str(path)!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable text file",
        ) from error


def refuse_both_ways(context: typer.Context) -> None:
    """Raise InvalidInput where a file and options say what the control is: one of them would be ignored."""
    harmless = {"file", "dry_run", "as_json"}
    given = [
        name.replace("_", "-")
        for name in context.params
        if name not in harmless and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise InvalidInput(
            f"--file says what is to be sent, and so {'does' if len(given) == 1 else 'do'} {', '.join(sorted(given))}.",
            code="input.file_and_options",
            fix="write everything into the file, or leave --file out",
        )


def refuse(objection: Objection, form: Form | None) -> NoReturn:
    """Raise InvalidInput for an objection, naming file and line where the control stands in a file."""
    from consentry.wire.yaml_text import line_of

    if form is None:
        message = f"{objection.problem[0].upper()}{objection.problem[1:]}."
    else:
        line = line_of(form.text, objection.field)
        message = f"{form.path}, line {line}, {objection.field}: {objection.problem}."
    raise InvalidInput(message, code=objection.code, fix=objection.fix)


def objection_to_pause(pause: PauseImposed, log: Sequence[Control], *, has_effective: bool) -> Objection | None:
    """A version that was lifted, or imposed otherwise, would be accepted and change nothing."""
    from consentry.domain.controls import PauseImposed, PauseLifted

    for known in log:
        is_lifted = isinstance(known, PauseLifted) and known.pause == pause.pause and known.version >= pause.version
        is_other = False
        if isinstance(known, PauseImposed) and (known.pause, known.version) == (pause.pause, pause.version):
            is_moved = has_effective and pause.effective_at != known.effective_at
            is_other = is_moved or (known.scope, known.reach) != (pause.scope, pause.reach)
        if is_lifted or is_other:
            return Objection(
                "version",
                f"version {pause.version} of pause {pause.pause!r} was "
                f"{'lifted' if is_lifted else 'imposed otherwise'} already: repeating it changes nothing",
                "give it a higher version",
                "input.pause_version",
            )
    return None


def objection_to_lift(lift: PauseLifted, log: Sequence[Control], *, has_effective: bool) -> Objection | None:
    """A lift of a pause that nobody imposed changes nothing; one from before the pause would undo that it ever held."""
    from consentry.domain.controls import PauseImposed
    from consentry.domain.words import date_text

    named = [known for known in log if isinstance(known, PauseImposed) and known.pause == lift.pause]
    ended = [known for known in named if known.version <= lift.version]
    if not ended:
        return Objection(
            "pause" if not named else "version",
            f"no pause {lift.pause!r} with a version up to {lift.version} was ever imposed",
            "name the pause as it was imposed; `consentry pause list` shows them",
            "input.pause_unknown",
        )
    start = max(known.effective_at for known in ended)
    if has_effective and lift.effective_at < start:
        return Objection(
            "effective",
            f"the lift takes effect on {date_text(lift.effective_at)}, before the pause does on {date_text(start)}",
            "give a time from then on; to withdraw a pause that was only announced, leave it out",
            "input.dates_inverted",
        )
    return None


def is_published(policy: PolicyPublished, log: Sequence[Control], form: Form, *, has_effective: bool) -> bool:
    """Whether this version was published before. Raises InvalidInput if it was with other content."""
    from consentry.domain.controls import PolicyPublished

    for known in log:
        if isinstance(known, PolicyPublished) and known.version == policy.version:
            is_moved = has_effective and known.effective_at != policy.effective_at
            if known.terms == policy.terms and not is_moved:
                return True
            other = "another effective time" if known.terms == policy.terms else "other terms"
            objection = Objection(
                "version",
                f"the policy version {policy.version!r} was published before with {other}: a record that names it "
                "would not say which",
                "give the new terms a version of their own",
                "input.policy_version",
            )
            refuse(objection, form)
    return False


def warn_of_voided_opt_ins(lift: PauseLifted, log: Sequence[Control]) -> None:
    """Say on standard error that a second lift, or one of an unreadable control, ends opt-ins for nothing."""
    from consentry.domain.controls import PauseLifted

    if not lift.voids_opt_ins:
        return
    known = [one for one in log if isinstance(one, PauseLifted) and one.pause == lift.pause]
    if any(one.version >= lift.version for one in known):
        typer.echo(f"note: {lift.pause} was lifted before; this makes the opt-ins since then void too", err=True)
    elif lift.pause.startswith("unreadable-"):
        typer.echo("note: opt-ins everywhere become void; --opt-ins KEEP leaves them", err=True)


def warn_of_unknown_purposes(scope: Scope, log: Sequence[Control]) -> None:
    """A slip of the finger would pause a purpose that nobody uses."""
    for purpose in scope.purposes or ():
        warn_of_unknown_purpose(purpose, log)


def warn_of_unknown_purpose(purpose: str, log: Sequence[Control]) -> None:
    """Say on standard error that no policy names a purpose, where some policy names any."""
    from consentry.domain.controls import PolicyPublished

    known = {terms.purpose for policy in log if isinstance(policy, PolicyPublished) for terms in policy.terms}
    if known and purpose not in known:
        typer.echo(
            f"note: no policy has terms for the purpose {purpose!r}; they have {', '.join(sorted(known))}", err=True
        )


def open_settings() -> Settings:
    """The settings of the command."""
    from consentry.cli.wiring import load_settings

    return load_settings()


def read_log(settings: Settings) -> list[Control]:
    """Every control so far."""
    from consentry.cli.wiring import read_controls

    return read_controls(settings)


def send_control(control: Control, settings: Settings, *, as_json: bool = False) -> None:
    """Send a control, wait until it is durable, and say where it stands. Raises Refused or Unavailable."""
    from confluent_kafka import Producer

    from consentry.cli.wiring import count_partitions, open_catalog
    from consentry.wire.controls import control_key, write_control
    from consentry.wire.kafka import producer_config, send
    from consentry.wire.schemas import CONTROLS, topic_name

    count_partitions(settings)
    topic = topic_name(settings.namespace, CONTROLS)
    value = write_control(control, open_catalog(settings))
    producer = Producer(producer_config(settings.kafka(), "consentry-desk"))
    [(_, offset)] = send(producer, topic, [(control_key(control), value)])
    kind, event_id = type(control).__name__, str(uuid.UUID(bytes=control.event_id))
    if as_json:
        typer.echo(json.dumps({"sent": True, "topic": topic, "offset": offset, "kind": kind, "event_id": event_id}))
    else:
        typer.echo(f"accepted: {topic} offset {offset}, {kind} {event_id}")
