"""Routes that only read: decisions and why, controls, and how the gateway stands."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from consentry.domain.controls import PauseImposed, PauseLifted, PolicyPublished
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
PlaceQuery = Annotated[
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
    jurisdiction: PlaceQuery = None,
    category: CategoryQuery = None,
    collected: CollectedQuery = None,
) -> Response:
    """May this member's data, or a row of it, be used for a purpose?

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
    jurisdiction: PlaceQuery = None,
    category: CategoryQuery = None,
    collected: CollectedQuery = None,
) -> Response:
    """Why: the chain of grounds, and every fact of the member with what became of it."""
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
    """Every pause, lift and policy, in the order of their log; of pauses, whether they are in force
    now.
    """
    context, _ = await authorize(request, Permission.READ_CONTROLS)
    view = context.reader.controls
    controls, now = view.controls, context.clock()
    pauses = [
        {
            **_common(pause),
            "pause": pause.pause,
            "version": pause.version,
            "jurisdictions": list(pause.scope.jurisdictions),
            "purposes": _list(pause.scope.purposes),
            "categories": _list(pause.scope.categories),
            "authority": pause.authority,
            "basis": pause.basis.value,
            "reach": pause.reach.value,
            "in_force": pause.effective_at <= now
            and not controls.is_lifted(pause, at=now, known_at=now),
        }
        for pause in controls.log
        if isinstance(pause, PauseImposed)
    ]
    lifts = [
        {
            **_common(lift),
            "pause": lift.pause,
            "version": lift.version,
            "opt_ins": lift.opt_ins.value,
        }
        for lift in controls.log
        if isinstance(lift, PauseLifted)
    ]
    policies = [
        {
            **_common(policy),
            "version": policy.version,
            "terms": [_terms(terms) for terms in policy.terms],
        }
        for policy in controls.log
        if isinstance(policy, PolicyPublished)
    ]
    detail = context.reader.stale_detail()
    fresh = {"position": view.position, "fresh": not detail, "detail": detail}
    return {**fresh, "pauses": pauses, "lifts": lifts, "policies": policies}


@router.get("/status", responses=problems())
async def get_status(request: Request) -> Json:
    """How far the table has come, whether the controls are fresh, and who is declared to owe
    receipts.

    A trainer sees no subscriber but itself.
    """
    context, caller = await authorize(request, Permission.READ_STATUS)
    try:
        partitions, detail = await asyncio.to_thread(context.reader.status), ""
    except Unavailable as error:
        partitions, detail = [], error.message
    controls = context.reader.stale_detail()
    subscribers: dict[str, list[str]] = {}
    for subscriber, dataset in context.subscribers:
        if caller.may_see_subscriber(subscriber):
            subscribers.setdefault(subscriber, []).append(dataset)
    is_fresh = bool(partitions) and all(one["fresh"] for one in partitions) and not controls
    return {
        "ok": is_fresh,
        "detail": detail or controls,
        "version": context.version,
        "caller": {"subject": caller.subject, "roles": sorted(caller.roles)},
        "partitions": partitions,
        "controls": {"position": context.reader.controls.position, "fresh": not controls},
        "messages_waiting": context.submitter.waiting,
        "subscribers": [
            {"subscriber": name, "datasets": datasets} for name, datasets in subscribers.items()
        ],
    }


async def _answer(
    request: Request, context: GatewayContext, caller: Principal, question: DecisionQuestion
) -> DecisionAnswer:
    """The answer, waited for only where it is not fresh at once.

    Raises Problem 429 and 503 where no place is free.
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
    """The question as the rules take it. Raises Problem and InvalidInput."""
    asked_known_at = _instant(known_at, "known_at")
    if asked_known_at is not None and asked_known_at > context.clock():
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
        known_at=asked_known_at,
        at_least=None if at_least is None else read_token(at_least, context.token_keys),
        wait_seconds=wait,
    )


def _instant(moment: datetime | None, name: str) -> Micros | None:
    if moment is None:
        return None
    found = micros(moment)
    if not INSTANT_MIN <= found < INSTANT_MAX:
        raise Problem(
            422,
            f"{name} lies outside 1979 to 3111.",
            code="input.parameter",
            fix="ask about another time",
            field=name,
        )
    return found


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


def _common(control: PauseImposed | PauseLifted | PolicyPublished) -> Json:
    return {
        "event_id": str(uuid.UUID(bytes=control.event_id)),
        "effective_at": iso_text(Micros(max(control.effective_at, 0))),
        "recorded_at": iso_text(control.recorded_at),
        "source": control.source,
    }


def _list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def _terms(terms: Any) -> Json:
    return {
        "jurisdictions": list(terms.jurisdictions),
        "purpose": terms.purpose,
        "regime": terms.regime.value,
        "basis": terms.basis,
        "categories": _list(terms.categories),
        "notice_until": None if terms.notice_until is None else iso_text(terms.notice_until),
        "collected_from": None if terms.collected_from is None else iso_text(terms.collected_from),
        "minors": terms.minors.value,
        "purge_on_opt_out": terms.purge_on_opt_out,
    }
