"""`consentry policy …`: publish policy versions, and list them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from consentry.cli.connections import read_controls
from consentry.cli.controls.desk import (
    DryRunOption,
    Submission,
    log_to_check_by,
    open_settings,
    read_file,
    refuse,
    show_or_submit,
)
from consentry.cli.options import JsonOption
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
    """Publish a policy version from a file. It binds from its effective time."""
    form = read_file(file)
    policy = parse_policy_file(
        form.text,
        event_id=uuid.uuid4().bytes,
        recorded_at=system_clock(),
        source="cli",
        file=form.path,
    )
    settings = open_settings()
    log = log_to_check_by(settings, dry_run=dry_run)
    # An effective time that is left out is the time of publishing. A repetition does not mean to
    # change it.
    has_effective = policy.effective_at != policy.recorded_at
    if log is not None:
        conflict = conflict_of_policy(policy, log, has_effective=has_effective)
        if conflict is not None:
            refuse(conflict, form)
        if is_published(policy, log, has_effective=has_effective):
            _print_published(policy, as_json=as_json)
            return
    body = read_form(form.text, lambda data: data, source=form.path)
    submission = Submission(policy, "/v1/policies", body)
    show_or_submit(submission, settings, log, dry_run=dry_run, as_json=as_json)


def _print_published(policy: PolicyPublished, *, as_json: bool) -> None:
    why = f"policy {policy.version} is published already, with the same terms; nothing was sent"
    if as_json:
        typer.echo(json.dumps({"sent": False, "why": why}))
    else:
        typer.echo(why)


@app.command("list")
def list_policies(as_json: JsonOption = False) -> None:
    """Print the policy versions, and where the terms of each bind now."""
    controls = Controls(iso_jurisdictions()).after(*read_controls(open_settings()))
    now = system_clock()
    if as_json:
        policies = [_policy_data(policy, controls, now) for policy in controls.policies]
        typer.echo(json.dumps({"policies": policies}))
        return
    if not controls.policies:
        typer.echo("no policy was ever published")
    for policy in controls.policies:
        entries = f"{len(policy.terms)} entries"
        if len(policy.terms) == 1:
            entries = "1 entry"
        effective = date_text(policy.effective_at)
        recorded = date_text(policy.recorded_at)
        typer.echo(f"{policy.version}: {entries}, effective {effective}, recorded {recorded}")
        for line in _binding_lines(policy, controls, now):
            typer.echo(f"  {line}")


def _binding_lines(policy: PolicyPublished, controls: Controls, now: Micros) -> list[str]:
    """Return where a policy's terms bind now, a line for each purpose."""
    codes_by_purpose = in_force(policy, controls, at=now, known_at=now)
    if not codes_by_purpose:
        if policy.effective_at > now:
            return ["announced"]
        return ["in force nowhere: later policies took its place"]
    lines: list[str] = []
    for purpose, codes in codes_by_purpose.items():
        where = named(codes, controls.jurisdictions, at=now)
        lines.append(f"in force for {purpose} in {where}")
    return lines


def _policy_data(policy: PolicyPublished, controls: Controls, now: Micros) -> dict[str, Any]:
    return {
        "version": policy.version,
        "event_id": str(uuid.UUID(bytes=policy.event_id)),
        "effective_at": moment_of(policy.effective_at).isoformat(),
        "recorded_at": moment_of(policy.recorded_at).isoformat(),
        "terms": len(policy.terms),
        "in_force": dict(in_force(policy, controls, at=now, known_at=now)),
    }
