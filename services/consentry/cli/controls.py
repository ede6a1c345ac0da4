"""`consentry pause …` and `consentry policy …`: what a regulator desk does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentry.cli.wiring import recorded_and_effective
from consentry.domain.controls import OptIns, PauseBasis, Reach
from consentry.domain.errors import InvalidInput

if TYPE_CHECKING:
    from consentry.domain.controls import Control, PauseImposed, PolicyPublished, Scope
    from consentry.ops.settings import Settings

INT_MAX = (1 << 31) - 1

pause_app = typer.Typer(name="pause", help="Impose and lift pauses.", no_args_is_help=True)
policy_app = typer.Typer(name="policy", help="Publish policies.", no_args_is_help=True)

PauseArgument = Annotated[str, typer.Argument(help="Name of the pause, such as hk-2024.")]
EffectiveOption = Annotated[str | None, typer.Option(help="When it takes effect, ISO 8601; default: now.")]


@pause_app.command()
def impose(
    pause: PauseArgument,
    jurisdiction: Annotated[list[str], typer.Option(help="ISO 3166 code, group or '*'; may be repeated.")],
    version: Annotated[int, typer.Option(min=1, max=INT_MAX, help="Higher than any version that was lifted.")] = 1,
    purpose: Annotated[list[str] | None, typer.Option(help="May be repeated; default: every purpose.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="May be repeated; default: every category.")] = None,
    effective: EffectiveOption = None,
    authority: Annotated[str, typer.Option(help="Who asked for it, such as PCPD.")] = "",
    basis: Annotated[PauseBasis, typer.Option(help="Ordered, or promised.")] = PauseBasis.UNDERTAKING,
    reach: Annotated[
        Reach, typer.Option(help="PRIOR_AND_FUTURE also has stored training data purged.")
    ] = Reach.GOING_FORWARD,
) -> None:
    """Stop a use for a scope, however many members it covers. Binds at once."""
    from consentry.domain.controls import PauseImposed
    from consentry.domain.values import parse_name
    from consentry.wire.forms import parse_scope

    scope = parse_scope(jurisdiction, purpose or None, category or None, what="--jurisdiction")
    name, settings = parse_name(pause, what="pause"), _settings()
    log = _log(settings)
    _refuse_without_effect(name, version, (scope, reach), effective, log)
    _warn_of_unknown_purposes(scope, log)
    now, at = recorded_and_effective(effective)
    control = PauseImposed(
        event_id=uuid.uuid4().bytes,
        pause=name,
        version=version,
        scope=scope,
        effective_at=at,
        recorded_at=now,
        authority=authority,
        basis=basis,
        reach=reach,
        source="cli",
    )
    _send(control, settings)


def _refuse_without_effect(
    pause: str, version: int, asked: tuple[Scope, Reach], effective: str | None, log: Sequence[Control]
) -> None:
    """A version that was lifted, or imposed otherwise, would be accepted and change nothing."""
    from consentry.domain.controls import PauseImposed, PauseLifted

    for known in log:
        is_lifted = isinstance(known, PauseLifted) and known.pause == pause and known.version >= version
        is_other = isinstance(known, PauseImposed) and (known.pause, known.version) == (pause, version)
        if is_lifted or (isinstance(known, PauseImposed) and is_other and _differs(known, asked, effective)):
            raise InvalidInput(
                f"Version {version} of pause {pause!r} was {'lifted' if is_lifted else 'imposed otherwise'} already: "
                "repeating it changes nothing.",
                code="input.pause_version",
                fix="give --version a higher number",
            )


def _differs(known: PauseImposed, asked: tuple[Scope, Reach], effective: str | None) -> bool:
    """Whether a repeated imposition says something that the first did not."""
    from consentry.wire.forms import parse_instant

    is_moved = effective is not None and parse_instant(effective, what="--effective") != known.effective_at
    return (known.scope, known.reach) != asked or is_moved


def _warn_of_unknown_purposes(scope: Scope, log: Sequence[Control]) -> None:
    """A slip of the finger would pause a purpose that nobody uses."""
    from consentry.domain.controls import PolicyPublished

    known = {terms.purpose for policy in log if isinstance(policy, PolicyPublished) for terms in policy.terms}
    for purpose in scope.purposes or ():
        if known and purpose not in known:
            typer.echo(
                f"note: no policy has terms for the purpose {purpose!r}; they have {', '.join(sorted(known))}", err=True
            )


@pause_app.command()
def lift(
    pause: PauseArgument,
    version: Annotated[int, typer.Option(min=1, max=INT_MAX, help="This version and those before it end.")] = 1,
    opt_ins: Annotated[OptIns, typer.Option(help="Whether opt-ins recorded before it still count.")] = OptIns.VOID,
    effective: EffectiveOption = None,
) -> None:
    """End a pause; opt-outs survive it. New terms come by `consentry policy publish`."""
    from consentry.domain.controls import PauseImposed, PauseLifted
    from consentry.domain.values import parse_name

    name = parse_name(pause, what="pause")
    settings = _settings()
    imposed = [control for control in _log(settings) if isinstance(control, PauseImposed) and control.pause == name]
    if not any(known.version <= version for known in imposed):
        raise InvalidInput(
            f"No pause {name!r} with a version up to {version} was ever imposed.",
            code="input.pause_unknown",
            fix="name the pause as it was imposed; `consentry pause list` shows them",
        )
    now, at = recorded_and_effective(effective)
    control = PauseLifted(
        event_id=uuid.uuid4().bytes,
        pause=name,
        version=version,
        effective_at=at,
        recorded_at=now,
        opt_ins=opt_ins,
        source="cli",
    )
    _send(control, settings)


@pause_app.command("list")
def list_pauses() -> None:
    """Show every pause, and which are in force now."""
    from consentry.domain.controls import Controls
    from consentry.ops.clock import system_clock
    from consentry.wire.forms import moment
    from consentry.wire.jurisdictions import iso_jurisdictions

    controls, now = Controls(iso_jurisdictions()).after(*_log(_settings())), system_clock()
    for pause in controls.pauses:
        if controls.is_lifted(pause, at=now, known_at=now):
            state = "lifted"
        else:
            state = "in force" if pause.effective_at <= now else "announced"
        typer.echo(
            f"{pause.pause:<24} v{pause.version}  {state:<9} {','.join(pause.scope.jurisdictions):<12} "
            f"effective {moment(pause.effective_at):%Y-%m-%d %H:%M}Z, "
            f"recorded {moment(pause.recorded_at):%Y-%m-%d %H:%M}Z"
        )
    if not controls.pauses:
        typer.echo("no pause was ever imposed")


@policy_app.command()
def publish(file: Annotated[Path, typer.Argument(help="YAML file; see docs/policies.md.")]) -> None:
    """Publish a policy version: it binds from its effective time."""
    from consentry.ops.clock import system_clock
    from consentry.wire.forms import parse_policy_file

    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The policy file {str(file)!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable text file",
        ) from error
    policy = parse_policy_file(text, event_id=uuid.uuid4().bytes, recorded_at=system_clock(), source="cli")
    settings = _settings()
    if _is_published(policy, _log(settings)):
        typer.echo(f"policy {policy.version} is published already, with the same terms; nothing was sent")
        return
    _send(policy, settings)


def _is_published(policy: PolicyPublished, log: Sequence[Control]) -> bool:
    """Whether this version was published before. Raises InvalidInput if it was with other content."""
    from consentry.domain.controls import PolicyPublished

    for known in log:
        if isinstance(known, PolicyPublished) and known.version == policy.version:
            if known.terms == policy.terms:
                return True
            raise InvalidInput(
                f"The policy version {policy.version!r} was published before with other terms: a record that names it "
                "would not say which.",
                code="input.policy_version",
                fix="give the new terms a version of their own",
            )
    return False


def _settings() -> Settings:
    from consentry.cli.wiring import load_settings

    return load_settings()


def _log(settings: Settings) -> list[Control]:
    from consentry.cli.wiring import read_controls

    return read_controls(settings)


def _send(control: Control, settings: Settings | None = None) -> None:
    from confluent_kafka import Producer

    from consentry.cli.wiring import count_partitions, open_catalog
    from consentry.wire.controls import control_key, write_control
    from consentry.wire.kafka import producer_config, send
    from consentry.wire.schemas import CONTROLS, topic_name

    settings = settings or _settings()
    count_partitions(settings)
    topic = topic_name(settings.namespace, CONTROLS)
    value = write_control(control, open_catalog(settings))
    producer = Producer(producer_config(settings.kafka(), "consentry-desk"))
    [(_, offset)] = send(producer, topic, [(control_key(control), value)])
    typer.echo(f"accepted: {topic} offset {offset}, {type(control).__name__} {uuid.UUID(bytes=control.event_id)}")
