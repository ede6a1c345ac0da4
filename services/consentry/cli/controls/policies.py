"""`consentry policy …`: publish policy versions, show them, or only tell what one would change."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from consentry.cli.controls.desk import (
    DryRunOption,
    JsonOption,
    hand_in,
    log_to_judge_by,
    open_settings,
    read_file,
    read_log,
    refuse,
)
from consentry.domain.control_checks import conflict_of_policy, is_published
from consentry.domain.controls import Controls, PolicyPublished
from consentry.domain.openings import in_force
from consentry.domain.values import Micros
from consentry.domain.wording import date_text, moment_of, named
from consentry.forms.controls import parse_policy_file
from consentry.forms.yaml import read_form
from consentry.ops.clock import system_clock
from consentry.wire.jurisdictions import iso_jurisdictions

app = typer.Typer(
    name="policy",
    help="Publish and list policies.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="YAML file; see docs/policies.md.")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a policy version. It binds from its effective time."""
    from consentry.cli.controls.report import show_impact  # noqa: PLC0415 - needs redis

    form = read_file(file)
    policy = parse_policy_file(
        form.text,
        event_id=uuid.uuid4().bytes,
        recorded_at=system_clock(),
        source="cli",
        file=form.path,
    )
    settings = open_settings()
    log = log_to_judge_by(settings, dry_run=dry_run)
    # Left out, it is the time of publishing, which a repetition does not mean to change.
    has_effective = policy.effective_at != policy.recorded_at
    objection = (
        None if log is None else conflict_of_policy(policy, log, has_effective=has_effective)
    )
    if objection is not None:
        refuse(objection, form)
    if log is not None and is_published(policy, log, has_effective=has_effective):
        said = (
            f"policy {policy.version} is published already, with the same terms; nothing was sent"
        )
        typer.echo(json.dumps({"sent": False, "why": said}) if as_json else said)
    elif dry_run and log is not None:
        show_impact(policy, settings, log, as_json=as_json)
    else:
        plain = read_form(form.text, lambda data: data, source=form.path)
        hand_in(policy, "/v1/policies", plain, settings, log, as_json=as_json)


@app.command("list")
def list_policies(as_json: JsonOption = False) -> None:
    """List the policy versions, and where the terms of each bind now."""
    controls, now = Controls(iso_jurisdictions()).after(*read_log(open_settings())), system_clock()
    if as_json:
        typer.echo(
            json.dumps(
                {"policies": [_policy_data(policy, controls, now) for policy in controls.policies]}
            )
        )
        return
    if not controls.policies:
        typer.echo("no policy was ever published")
    for policy in controls.policies:
        count = len(policy.terms)
        typer.echo(
            f"{policy.version}: {count} {'entry' if count == 1 else 'entries'}, effective "
            f"{date_text(policy.effective_at)}, recorded {date_text(policy.recorded_at)}"
        )
        for line in _binding_lines(policy, controls, now):
            typer.echo(f"  {line}")


def _binding_lines(policy: PolicyPublished, controls: Controls, now: Micros) -> list[str]:
    """Where a policy's terms bind now, by purpose."""

    found = in_force(policy, controls, at=now, known_at=now)
    if found:
        places = {
            purpose: named(codes, controls.jurisdictions, at=now)
            for purpose, codes in found.items()
        }
        return [f"in force for {purpose} in {text}" for purpose, text in places.items()]
    return [
        "announced"
        if policy.effective_at > now
        else "in force nowhere: later policies took its place"
    ]


def _policy_data(policy: PolicyPublished, controls: Controls, now: Micros) -> dict[str, Any]:
    return {
        "version": policy.version,
        "event_id": str(uuid.UUID(bytes=policy.event_id)),
        "effective_at": moment_of(policy.effective_at).isoformat(),
        "recorded_at": moment_of(policy.recorded_at).isoformat(),
        "terms": len(policy.terms),
        "in_force": dict(in_force(policy, controls, at=now, known_at=now)),
    }
