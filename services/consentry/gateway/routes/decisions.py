"""Routes of the gateway that only read: decisions, explanations, controls, and its state."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from consentry.domain.controls import (
    Control,
    Controls,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Terms,
)
from consentry.domain.decisions import Row
from consentry.domain.errors import Unavailable
from consentry.domain.explain import as_data
from consentry.domain.values import (
    MEMBER_ID_PATTERN,
    NAME_PATTERN,
    MemberId,
    Micros,
    Reason,
    micros,
)
from consentry.domain.wording import iso_text
from consentry.gateway.access import Permission, Principal, require_purpose
from consentry.gateway.context import GatewayContext, authorize
from consentry.gateway.http.limits import WaitingLimit
from consentry.gateway.http.models import Json, Moment, VersionedDecisionOut
from consentry.gateway.http.openapi import problems
from consentry.gateway.table_reader import WAIT_SECONDS_MAX, DecisionAnswer, DecisionQuestion
from consentry.ops.http.problems import Problem
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN
from consentry.wire.tokens import TEXT_LENGTH_MAX, read_token

router = APIRouter(prefix="/v1", tags=["questions"])

MemberPath = Annotated[str, Path(pattern=f"^{MEMBER_ID_PATTERN.pattern}$")]
PurposeQuery = Annotated[
    str, Query(pattern=f"^{NAME_PATTERN.pattern}$", description="What the data would be used for.")
]
AtQuery = Annotated[Moment | None, Query(description="When the data would be used; default: now.")]
KnownAtQuery = Annotated[
    Moment | None, Query(description="By what had been recorded then; default: now.")
]
TokenQuery = Annotated[
    str | None,
    Query(
        max_length=TEXT_LENGTH_MAX,
        description="Consistency token: the answer is at least as fresh, or STALE.",
    ),
]
WaitQuery = Annotated[
    float, Query(ge=0, le=WAIT_SECONDS_MAX, description="Seconds to wait for freshness.")
]
JurisdictionQuery = Annotated[
    str | None, Query(max_length=6, description="Where the row comes from: an ISO 3166 code.")
]
CategoryQuery = Annotated[
    str | None, Query(pattern=f"^{NAME_PATTERN.pattern}$", description="The row's category.")
]
CollectedQuery = Annotated[Moment | None, Query(description="When the row was collected.")]


@router.get(
    "/members/{member_id}/decision",
    response_model=VersionedDecisionOut,
    responses=problems(400, 422),
)
async def get_decision(
    request: Request,
    member_id: MemberPath,
    purpose: PurposeQuery,
    at: AtQuery = None,
    known_at: KnownAtQuery = None,
    at_least: TokenQuery = None,
    wait: WaitQuery = 2.0,
    jurisdiction: JurisdictionQuery = None,
    category: CategoryQuery = None,
    collected: CollectedQuery = None,
) -> Response:
    """Answer at the gateway whether a member's data, or a row of it, may be used for a purpose.

    The ETag is what an opt-in observes.
    """
    context, caller = await authorize(request, Permission.ASK)
    require_purpose(caller, purpose)
    row = _row(jurisdiction, category, collected)
    question = _question(context, member_id, purpose, row, at, known_at, at_least, wait)
    answer = await _answer(request, context, caller, question)
    _count(context, answer)
    return _response(_decision_data(answer), answer)


@router.get("/members/{member_id}/explain", responses=problems(400, 422))
async def get_explanation(
    request: Request,
    member_id: MemberPath,
    purpose: PurposeQuery,
    at: AtQuery = None,
    known_at: KnownAtQuery = None,
    at_least: TokenQuery = None,
    wait: WaitQuery = 2.0,
    jurisdiction: JurisdictionQuery = None,
    category: CategoryQuery = None,
    collected: CollectedQuery = None,
) -> Response:
    """Explain a decision at the gateway: its grounds, and each fact of the member.

    Every fact stands with its effect.
    """
    context, caller = await authorize(request, Permission.EXPLAIN)
    require_purpose(caller, purpose)
    row = _row(jurisdiction, category, collected)
    question = _question(context, member_id, purpose, row, at, known_at, at_least, wait)
    answer = await _answer(request, context, caller, question)
    data: Json = {"member": member_id, **_decision_data(answer)}
    if answer.explanation is not None:
        data |= as_data(answer.explanation)
    return _response(data, answer)


@router.get("/controls", responses=problems())
async def get_controls(request: Request) -> Json:
    """List every pause, lift and policy at the gateway, in the order of their log.

    Each pause says whether it is in force now.
    """
    context, _ = await authorize(request, Permission.READ_CONTROLS)
    follower, now = context.reader.controls, context.clock()
    pauses, lifts, policies = [], [], []
    for control in follower.controls.log:
        if isinstance(control, PauseImposed):
            pauses.append(_pause_data(control, follower.controls, now))
        elif isinstance(control, PauseLifted):
            lifts.append(_lift_data(control))
        else:
            policies.append(_policy_data(control))
    detail = context.reader.stale_detail()
    return {
        "position": follower.position,
        "fresh": not detail,
        "detail": detail,
        "pauses": pauses,
        "lifts": lifts,
        "policies": policies,
    }


@router.get("/status", responses=problems())
async def get_status(request: Request) -> Json:
    """Report at the gateway on its consent table, the controls and the declared subscribers.

    A trainer sees no subscriber but itself.
    """
    context, caller = await authorize(request, Permission.READ_STATUS)
    try:
        partitions, detail = await asyncio.to_thread(context.reader.status), ""
    except Unavailable as error:
        partitions, detail = [], error.message
    controls_detail = context.reader.stale_detail()
    is_built = bool(partitions) and all(partition["fresh"] for partition in partitions)
    return {
        "ok": is_built and not controls_detail,
        "detail": detail or controls_detail,
        "version": context.version,
        "caller": {"subject": caller.subject, "roles": sorted(caller.roles)},
        "partitions": partitions,
        "controls": {
            "position": context.reader.controls.position,
            "fresh": not controls_detail,
        },
        "messages_waiting": context.submitter.waiting,
        "subscribers": _subscribers(context, caller),
    }


def _subscribers(context: GatewayContext, caller: Principal) -> list[Json]:
    """Return the data sets of each declared subscriber that the caller may see."""
    datasets: dict[str, list[str]] = {}
    for subscriber, dataset in context.subscribers:
        if caller.may_see_subscriber(subscriber):
            datasets.setdefault(subscriber, []).append(dataset)
    return [{"subscriber": name, "datasets": names} for name, names in datasets.items()]


async def _answer(
    request: Request, context: GatewayContext, caller: Principal, question: DecisionQuestion
) -> DecisionAnswer:
    """Return the answer, and wait for it only where it is not fresh at once.

    Raises Problem 429 and 503 where too many questions wait.
    """
    answer = await context.reader.answer(replace(question, wait_seconds=0.0))
    if answer.decision.reason is not Reason.STALE or question.wait_seconds <= 0:
        return answer
    waiting: WaitingLimit = request.app.state.waiting
    with waiting.slot(caller.subject):
        return await context.reader.answer(question)


def _row(jurisdiction: str | None, category: str | None, collected: datetime | None) -> Row | None:
    if jurisdiction is None and category is None and collected is None:
        return None
    return Row(
        jurisdiction=jurisdiction,
        category=category,
        collected=None if collected is None else micros(collected),
    )


def _question(
    context: GatewayContext,
    member_id: str,
    purpose: str,
    row: Row | None,
    at: datetime | None,
    known_at: datetime | None,
    at_least: str | None,
    wait: float,
) -> DecisionQuestion:
    """Return the question as the rules take it. Raises Problem and InvalidInput."""
    known_at_micros = _instant(known_at, "known_at")
    if known_at_micros is not None and known_at_micros > context.clock():
        raise Problem(
            422,
            "known_at lies ahead: what will have been recorded by then is not known.",
            code="input.known_at",
            fix="leave it out to ask by what is known now",
            field="known_at",
        )
    return DecisionQuestion(
        member=MemberId(member_id),
        purpose=purpose,
        row=row,
        at=_instant(at, "at"),
        known_at=known_at_micros,
        at_least=None if at_least is None else read_token(at_least, context.token_keys),
        wait_seconds=wait,
    )


def _instant(moment: datetime | None, name: str) -> Micros | None:
    if moment is None:
        return None
    instant = micros(moment)
    if not INSTANT_MIN <= instant < INSTANT_MAX:
        raise Problem(
            422,
            f"{name} lies outside 1979 to 3111.",
            code="input.parameter",
            fix="ask about another time",
            field=name,
        )
    return instant


def _decision_data(answer: DecisionAnswer) -> Json:
    return {
        "allowed": answer.decision.allowed,
        "reason": answer.decision.reason.value,
        "because": list(answer.because),
        "version": answer.version,
    }


def _response(data: Json, answer: DecisionAnswer) -> Response:
    headers = {"Cache-Control": "no-store"}
    if answer.version is not None:
        headers["ETag"] = f'"{answer.version}"'
    return Response(json.dumps(data), 200, headers, "application/json")


def _count(context: GatewayContext, answer: DecisionAnswer) -> None:
    outcome = "allowed" if answer.decision.allowed else "excluded"
    reason = answer.decision.reason.value
    fresh = "false" if reason == "STALE" else "true"
    context.metrics.counter("consentry_decisions_total", outcome, reason, fresh).inc()


def _pause_data(pause: PauseImposed, controls: Controls, now: Micros) -> Json:
    is_lifted = controls.is_lifted(pause, at=now, known_at=now)
    return {
        **_common_data(pause),
        "pause": pause.pause,
        "version": pause.version,
        "jurisdictions": list(pause.scope.jurisdictions),
        "purposes": _list(pause.scope.purposes),
        "categories": _list(pause.scope.categories),
        "authority": pause.authority,
        "basis": pause.basis.value,
        "reach": pause.reach.value,
        "in_force": pause.effective_at <= now and not is_lifted,
    }


def _lift_data(lift: PauseLifted) -> Json:
    return {
        **_common_data(lift),
        "pause": lift.pause,
        "version": lift.version,
        "opt_ins": lift.opt_ins.value,
    }


def _policy_data(policy: PolicyPublished) -> Json:
    return {
        **_common_data(policy),
        "version": policy.version,
        "terms": [_terms_data(terms) for terms in policy.terms],
    }


def _common_data(control: Control) -> Json:
    return {
        "event_id": str(uuid.UUID(bytes=control.event_id)),
        "effective_at": iso_text(Micros(max(control.effective_at, 0))),
        "recorded_at": iso_text(control.recorded_at),
        "source": control.source,
    }


def _terms_data(terms: Terms) -> Json:
    return {
        "jurisdictions": list(terms.jurisdictions),
        "purpose": terms.purpose,
        "regime": terms.regime.value,
        "basis": terms.basis,
        "categories": _list(terms.categories),
        "notice_until": _iso_text(terms.notice_until),
        "collected_from": _iso_text(terms.collected_from),
        "minors": terms.minors.value,
        "purge_on_opt_out": terms.purge_on_opt_out,
    }


def _iso_text(instant: Micros | None) -> str | None:
    return None if instant is None else iso_text(instant)


def _list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)
