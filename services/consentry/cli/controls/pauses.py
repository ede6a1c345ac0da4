"""`consentry pause …`: impose and lift pauses, from options or a file, and list them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from consentry.cli.connections import read_controls
from consentry.cli.controls.desk import (
    INT_MAX,
    DeskDraft,
    DryRunOption,
    Submission,
    log_to_check_by,
    open_settings,
    read_draft,
    refuse,
    refuse_both_ways,
    show_or_submit,
    warn_of_unknown_purposes,
    warn_of_voided_opt_ins,
)
from consentry.cli.event_times import EventTimes
from consentry.cli.options import EffectiveOption, JsonOption
from consentry.domain.control_checks import conflict_of_lift, conflict_of_pause
from consentry.domain.controls import Controls, OptIns, PauseBasis, PauseImposed, PauseLifted, Reach
from consentry.domain.values import Micros, parse_name
from consentry.domain.wording import moment_of
from consentry.forms.controls import parse_lift, parse_pause
from consentry.forms.fields import parse_scope
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
JurisdictionsOption = Annotated[
    list[str] | None,
    typer.Option(help="ISO 3166 code, group or '*'; repeatable.", show_default=False),
]
FileOption = Annotated[
    Path | None, typer.Option(help="YAML file instead of options; see docs/pauses.md.")
]


@app.command()
def impose(
    context: typer.Context,
    pause: PauseArgument = None,
    jurisdiction: JurisdictionsOption = None,
    version: Annotated[
        int, typer.Option(min=1, max=INT_MAX, help="Higher than any version that was lifted.")
    ] = 1,
    purpose: Annotated[
        list[str] | None,
        typer.Option(help="Purpose that is paused; repeatable. Default: every purpose."),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(help="Data category that is paused; repeatable. Default: every one."),
    ] = None,
    effective: EffectiveOption = None,
    authority: Annotated[str, typer.Option(help="Who asked for it, such as PCPD.")] = "",
    basis: Annotated[
        PauseBasis, typer.Option(help="ORDER of an authority, or UNDERTAKING of the platform.")
    ] = PauseBasis.UNDERTAKING,
    reach: Annotated[
        Reach, typer.Option(help="PRIOR_AND_FUTURE also purges stored training data.")
    ] = Reach.GOING_FORWARD,
    file: FileOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Impose a pause by options or a file: stop a use for a scope of members.

    It may cover any number of members. It binds at once, or at --effective.
    """
    if file is not None:
        refuse_both_ways(context)
        draft = read_draft(file, parse_pause)
    else:
        if pause is None:
            raise typer.BadParameter("name the pause, or a file", param_hint="'PAUSE'")
        if jurisdiction is None:
            raise typer.BadParameter(
                "name what it covers, or a file", param_hint="'--jurisdiction'"
            )
        scope = parse_scope(jurisdiction, purpose or None, category or None, what="--jurisdiction")
        name = parse_name(pause, what="pause")
        times = EventTimes.parse(effective)
        control = PauseImposed(
            event_id=uuid.uuid4().bytes,
            pause=name,
            version=version,
            scope=scope,
            effective_at=times.effective_at,
            recorded_at=times.recorded_at,
            authority=authority,
            basis=basis,
            reach=reach,
            source="cli",
        )
        draft = DeskDraft(control, effective is not None, None)
    _impose(draft, dry_run=dry_run, as_json=as_json)


def _impose(draft: DeskDraft[PauseImposed], *, dry_run: bool, as_json: bool) -> None:
    settings = open_settings()
    log = log_to_check_by(settings, dry_run=dry_run)
    if log is not None:
        conflict = conflict_of_pause(draft.control, log, has_effective=draft.has_effective)
        if conflict is not None:
            refuse(conflict, draft.file)
        warn_of_unknown_purposes(draft.control.scope, log)
    submission = Submission(draft.control, "/v1/pauses", _pause_body(draft))
    show_or_submit(submission, settings, log, dry_run=dry_run, as_json=as_json)


def _pause_body(draft: DeskDraft[PauseImposed]) -> dict[str, Any]:
    """Return the pause as the gateway takes it."""
    pause = draft.control
    scope = pause.scope
    return {
        "pause": pause.pause,
        "version": pause.version,
        "jurisdictions": list(scope.jurisdictions),
        "purposes": _list_or_none(scope.purposes),
        "categories": _list_or_none(scope.categories),
        "authority": pause.authority,
        "basis": pause.basis.value,
        "reach": pause.reach.value,
        **_effective_field(draft),
    }


def _effective_field(draft: DeskDraft[PauseImposed] | DeskDraft[PauseLifted]) -> dict[str, str]:
    """Return the effective time as the gateway takes it; nothing where the draft gives none."""
    if not draft.has_effective:
        return {}
    return {"effective": moment_of(draft.control.effective_at).isoformat()}


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
    """Lift a pause by options or a file. Opt-outs survive it.

    New terms are published by `consentry policy publish`.
    """

    if file is not None:
        refuse_both_ways(context)
        draft = read_draft(file, parse_lift)
    else:
        if pause is None:
            raise typer.BadParameter("name the pause, or a file", param_hint="'PAUSE'")
        name = parse_name(pause, what="pause")
        times = EventTimes.parse(effective)
        control = PauseLifted(
            event_id=uuid.uuid4().bytes,
            pause=name,
            version=version,
            effective_at=times.effective_at,
            recorded_at=times.recorded_at,
            opt_ins=opt_ins,
            source="cli",
        )
        draft = DeskDraft(control, effective is not None, None)
    _lift(draft, dry_run=dry_run, as_json=as_json)


def _lift(draft: DeskDraft[PauseLifted], *, dry_run: bool, as_json: bool) -> None:
    settings = open_settings()
    log = log_to_check_by(settings, dry_run=dry_run)
    lift = draft.control
    if log is not None:
        conflict = conflict_of_lift(lift, log, has_effective=draft.has_effective)
        if conflict is not None:
            refuse(conflict, draft.file)
        warn_of_voided_opt_ins(lift, log)
    body = {"version": lift.version, "opt_ins": lift.opt_ins.value, **_effective_field(draft)}
    submission = Submission(lift, f"/v1/pauses/{lift.pause}/lift", body)
    show_or_submit(submission, settings, log, dry_run=dry_run, as_json=as_json)


@app.command("list")
def list_pauses(as_json: JsonOption = False) -> None:
    """Print the pauses: what each covers, if it is in force, and who lifted it."""
    controls = Controls(iso_jurisdictions()).after(*read_controls(open_settings()))
    now = system_clock()
    pauses = [_pause_data(pause, controls, now) for pause in controls.pauses]
    if as_json:
        typer.echo(json.dumps(pauses))
        return
    for pause in pauses:
        _print_pause(pause)
    if not pauses:
        typer.echo("no pause was ever imposed")


def _pause_data(pause: PauseImposed, controls: Controls, now: Micros) -> dict[str, Any]:
    """Return a pause as JSON fields, with the lift that ended it."""
    lift = _ending_lift(pause, controls, now)
    state = "announced"
    if lift is not None:
        state = "lifted"
    elif pause.effective_at <= now:
        state = "in force"
    scope = pause.scope
    # Only what stands in for a control that could not be read is in effect from the beginning of
    # time.
    effective_at = None
    if pause.effective_at > 0:
        effective_at = moment_of(pause.effective_at).isoformat()
    lifted_at, lifted_by = None, None
    if lift is not None:
        lifted_at = moment_of(lift.effective_at).isoformat()
        lifted_by = lift.source
    return {
        "pause": pause.pause,
        "version": pause.version,
        "state": state,
        "jurisdictions": list(scope.jurisdictions),
        "purposes": _list_or_none(scope.purposes),
        "categories": _list_or_none(scope.categories),
        "authority": pause.authority,
        "basis": pause.basis.value,
        "reach": pause.reach.value,
        "effective_at": effective_at,
        "recorded_at": moment_of(pause.recorded_at).isoformat(),
        "source": pause.source,
        "lifted_at": lifted_at,
        "lifted_by": lifted_by,
    }


def _list_or_none(names: Iterable[str] | None) -> list[str] | None:
    """Return names as a JSON list; None, which stands for all of them, stays null."""
    if names is None:
        return None
    return list(names)


def _ending_lift(pause: PauseImposed, controls: Controls, now: Micros) -> PauseLifted | None:
    """Return the first lift in the log that ends this version of a pause by now."""
    for control in controls.log:
        if not isinstance(control, PauseLifted):
            continue
        ends_pause = control.pause == pause.pause and control.version >= pause.version
        if ends_pause and max(control.effective_at, control.recorded_at) <= now:
            return control
    return None


def _print_pause(pause: dict[str, Any]) -> None:
    since = "always (unreadable)"
    if pause["effective_at"]:
        since = _minute_text(pause["effective_at"])
    typer.echo(
        f"{pause['pause']:<24} v{pause['version']}  {pause['state']:<9} "
        f"{','.join(pause['jurisdictions']):<12} "
        f"effective {since}, recorded {_minute_text(pause['recorded_at'])}"
    )
    details = [pause["authority"], pause["basis"]]
    for name in ("purposes", "categories"):
        if pause[name] is not None:
            details.append(", ".join(pause[name]))
    if pause["reach"] != Reach.GOING_FORWARD.value:
        details.append(pause["reach"])
    typer.echo(f"  {'; '.join(filter(None, details))}; by {pause['source'] or 'nobody named'}")
    if pause["lifted_at"]:
        lifted_by = pause["lifted_by"] or "nobody named"
        typer.echo(f"  lifted {_minute_text(pause['lifted_at'])} by {lifted_by}")


def _minute_text(iso: str) -> str:
    """Return a moment in ISO 8601 as `2024-10-11 08:00Z`."""
    return f"{iso[:16].replace('T', ' ')}Z"
