"""`consentry pause …`: impose and lift pauses, from options or a file, or only tell what they would
change.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from consentry.cli.connections import recorded_and_effective
from consentry.cli.controls.desk import (
    INT_MAX,
    ControlFile,
    DryRunOption,
    JsonOption,
    hand_in,
    log_to_judge_by,
    open_settings,
    read_file,
    read_log,
    refuse,
    refuse_both_ways,
    warn_of_unknown_purposes,
    warn_of_voided_opt_ins,
)
from consentry.domain.control_checks import conflict_of_lift, conflict_of_pause
from consentry.domain.controls import Controls, OptIns, PauseBasis, PauseImposed, PauseLifted, Reach
from consentry.domain.values import Micros, parse_name
from consentry.domain.wording import moment_of
from consentry.forms.controls import parse_lift, parse_pause
from consentry.forms.fields import parse_scope
from consentry.forms.yaml import read_form
from consentry.ops.clock import system_clock
from consentry.wire.jurisdictions import iso_jurisdictions

app = typer.Typer(
    name="pause",
    help="Impose, lift and list pauses.",
    no_args_is_help=True,
    add_completion=False,
)

PauseArgument = Annotated[
    str | None, typer.Argument(help="Name of the pause, such as hk-2024.", show_default=False)
]
EffectiveOption = Annotated[
    str | None, typer.Option(help="When it takes effect, ISO 8601; default: now.")
]
FileOption = Annotated[
    Path | None, typer.Option(help="YAML file instead of options; see docs/pauses.md.")
]


class _Draft(NamedTuple):
    """A pause as it was asked for; whether it names its own effective time, and the file it stands
    in.
    """

    control: PauseImposed
    has_effective: bool
    form: ControlFile | None


class _LiftDraft(NamedTuple):
    """As _Draft, for a lift."""

    control: PauseLifted
    has_effective: bool
    form: ControlFile | None


@app.command()
def impose(
    context: typer.Context,
    pause: PauseArgument = None,
    jurisdiction: Annotated[
        list[str] | None,
        typer.Option(help="ISO 3166 code, group or '*'; may be repeated.", show_default=False),
    ] = None,
    version: Annotated[
        int, typer.Option(min=1, max=INT_MAX, help="Higher than any version that was lifted.")
    ] = 1,
    purpose: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: every purpose.")
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: every category.")
    ] = None,
    effective: EffectiveOption = None,
    authority: Annotated[str, typer.Option(help="Who asked for it, such as PCPD.")] = "",
    basis: Annotated[
        PauseBasis, typer.Option(help="Ordered, or promised.")
    ] = PauseBasis.UNDERTAKING,
    reach: Annotated[
        Reach, typer.Option(help="PRIOR_AND_FUTURE also has stored training data purged.")
    ] = Reach.GOING_FORWARD,
    file: FileOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Impose a pause: stop a use for a scope, however many members it covers.

    It binds at once, or at --effective.
    """
    if file is not None:
        refuse_both_ways(context)
        draft = _pause_in(read_file(file))
    else:
        if pause is None:
            raise typer.BadParameter("name the pause, or a file", param_hint="'PAUSE'")
        if jurisdiction is None:
            raise typer.BadParameter(
                "name what it covers, or a file", param_hint="'--jurisdiction'"
            )
        scope = parse_scope(jurisdiction, purpose or None, category or None, what="--jurisdiction")
        name = parse_name(pause, what="pause")
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
        draft = _Draft(control, effective is not None, None)
    _impose(draft, dry_run=dry_run, as_json=as_json)


def _pause_in(form: ControlFile) -> _Draft:
    """The pause in a file. Raises InvalidInput naming file, line and field."""
    now = system_clock()

    def parse(data: object) -> _Draft:
        control = parse_pause(data, event_id=uuid.uuid4().bytes, recorded_at=now, source="cli")
        return _Draft(control, isinstance(data, dict) and data.get("effective") is not None, form)

    return read_form(form.text, parse, source=form.path)


def _impose(draft: _Draft, *, dry_run: bool, as_json: bool) -> None:
    from consentry.cli.controls.report import show_impact  # noqa: PLC0415 - needs redis

    settings = open_settings()
    log = log_to_judge_by(settings, dry_run=dry_run)
    if log is not None:
        objection = conflict_of_pause(draft.control, log, has_effective=draft.has_effective)
        if objection is not None:
            refuse(objection, draft.form)
        warn_of_unknown_purposes(draft.control.scope, log)
    if dry_run and log is not None:
        show_impact(draft.control, settings, log, as_json=as_json)
    else:
        hand_in(draft.control, "/v1/pauses", _pause_form(draft), settings, log, as_json=as_json)


def _pause_form(draft: _Draft) -> dict[str, Any]:
    """The pause as the gateway takes it."""

    pause, scope = draft.control, draft.control.scope
    found: dict[str, Any] = {
        "pause": pause.pause,
        "version": pause.version,
        "jurisdictions": list(scope.jurisdictions),
        "purposes": None if scope.purposes is None else list(scope.purposes),
        "categories": None if scope.categories is None else list(scope.categories),
        "authority": pause.authority,
        "basis": pause.basis.value,
        "reach": pause.reach.value,
    }
    return found | (
        {"effective": moment_of(pause.effective_at).isoformat()} if draft.has_effective else {}
    )


@app.command()
def lift(
    context: typer.Context,
    pause: PauseArgument = None,
    version: Annotated[
        int, typer.Option(min=1, max=INT_MAX, help="This version and those before it end.")
    ] = 1,
    opt_ins: Annotated[
        OptIns, typer.Option(help="Whether opt-ins recorded before it still count.")
    ] = OptIns.VOID,
    effective: EffectiveOption = None,
    file: FileOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Lift a pause. Opt-outs survive it.

    New terms are published by `consentry policy publish`.
    """
    from consentry.cli.controls.report import show_impact  # noqa: PLC0415 - needs redis

    if file is not None:
        refuse_both_ways(context)
        draft = _lift_in(read_file(file))
    else:
        if pause is None:
            raise typer.BadParameter("name the pause, or a file", param_hint="'PAUSE'")
        name = parse_name(pause, what="pause")
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
        draft = _LiftDraft(control, effective is not None, None)
    settings = open_settings()
    log = log_to_judge_by(settings, dry_run=dry_run)
    if log is not None:
        objection = conflict_of_lift(draft.control, log, has_effective=draft.has_effective)
        if objection is not None:
            refuse(objection, draft.form)
        warn_of_voided_opt_ins(draft.control, log)
    if dry_run and log is not None:
        show_impact(draft.control, settings, log, as_json=as_json)
    else:
        body: dict[str, Any] = {
            "version": draft.control.version,
            "opt_ins": draft.control.opt_ins.value,
        }
        body |= (
            {"effective": moment_of(draft.control.effective_at).isoformat()}
            if draft.has_effective
            else {}
        )
        hand_in(
            draft.control,
            f"/v1/pauses/{draft.control.pause}/lift",
            body,
            settings,
            log,
            as_json=as_json,
        )


def _lift_in(form: ControlFile) -> _LiftDraft:
    """The lift in a file. Raises InvalidInput naming file, line and field."""
    now = system_clock()

    def parse(data: object) -> _LiftDraft:
        control = parse_lift(data, event_id=uuid.uuid4().bytes, recorded_at=now, source="cli")
        return _LiftDraft(
            control, isinstance(data, dict) and data.get("effective") is not None, form
        )

    return read_form(form.text, parse, source=form.path)


@app.command("list")
def list_pauses(as_json: JsonOption = False) -> None:
    """List the pauses: what each covers, whether it is in force, and who lifted it."""
    controls, now = Controls(iso_jurisdictions()).after(*read_log(open_settings())), system_clock()
    found = [_pause_data(pause, controls, now) for pause in controls.pauses]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        _print_pause(one)
    if not found:
        typer.echo("no pause was ever imposed")


def _pause_data(pause: PauseImposed, controls: Controls, now: Micros) -> dict[str, Any]:
    """A pause as plain values, with the lift that ended it."""
    lift = next(
        (
            known
            for known in controls.log
            if isinstance(known, PauseLifted)
            and (known.pause == pause.pause and known.version >= pause.version)
            and max(known.effective_at, known.recorded_at) <= now
        ),
        None,
    )
    state = (
        "lifted" if lift is not None else "in force" if pause.effective_at <= now else "announced"
    )
    scope = pause.scope
    return {
        "pause": pause.pause,
        "version": pause.version,
        "state": state,
        "jurisdictions": list(scope.jurisdictions),
        "purposes": None if scope.purposes is None else list(scope.purposes),
        "categories": None if scope.categories is None else list(scope.categories),
        "authority": pause.authority,
        "basis": pause.basis.value,
        "reach": pause.reach.value,
        # Only what stands in for a control that could not be read is in effect from the beginning
        # of time.
        "effective_at": moment_of(pause.effective_at).isoformat()
        if pause.effective_at > 0
        else None,
        "recorded_at": moment_of(pause.recorded_at).isoformat(),
        "source": pause.source,
        "lifted_at": None if lift is None else moment_of(lift.effective_at).isoformat(),
        "lifted_by": None if lift is None else lift.source,
    }


def _print_pause(one: dict[str, Any]) -> None:
    since = (
        f"{one['effective_at'][:16].replace('T', ' ')}Z"
        if one["effective_at"]
        else "always (unreadable)"
    )
    typer.echo(
        f"{one['pause']:<24} v{one['version']}  {one['state']:<9} "
        f"{','.join(one['jurisdictions']):<12} "
        f"effective {since}, recorded {one['recorded_at'][:16].replace('T', ' ')}Z"
    )
    covered = [", ".join(one[name]) for name in ("purposes", "categories") if one[name] is not None]
    told = [
        one["authority"],
        one["basis"],
        *covered,
        *([one["reach"]] if one["reach"] != "GOING_FORWARD" else []),
    ]
    typer.echo(f"  {'; '.join(filter(None, told))}; by {one['source'] or 'nobody named'}")
    if one["lifted_at"]:
        typer.echo(
            f"  lifted {one['lifted_at'][:16].replace('T', ' ')}Z by "
            f"{one['lifted_by'] or 'nobody named'}"
        )
