"""The HTTP routes of the trainer's agent."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from consentry.domain.decisions import Row
from consentry.domain.errors import InvalidInput
from consentry.domain.values import parse_name
from consentry.trainer.agent.bodies import (
    ARROW,
    JSON,
    PARQUET,
    field_problem,
    parse_object,
    read_body,
    table_of_arrow,
)
from consentry.trainer.agent.models import DecideIn
from consentry.trainer.agent.questions import (
    SHOWN_MAX,
    CheckQuestion,
    MaskQuestion,
    check_question,
    mask_question,
    required_purpose,
)
from consentry.trainer.agent.responses import (
    check_response,
    decision_response,
    mask_response,
    probe_response,
)
from consentry.trainer.agent.service import WAIT_SECONDS_MAX, Agent
from consentry.trainer.checking.check import Batches, Check, CheckReport
from consentry.trainer.checking.data_files import read_as, read_batches, read_parquet
from consentry.trainer.deciding.columns import ColumnSpec, json_micros_of

MemberQuery = Annotated[
    str, Query(description="Pseudonym of the member. In logs of proxies: prefer POST.")
]
PurposeQuery = Annotated[str, Query(description="What the data would be used for.")]
TokenQuery = Annotated[
    str | None, Query(max_length=4096, description="Consistency token: as fresh as that, or STALE.")
]
WaitQuery = Annotated[
    float, Query(ge=0, le=WAIT_SECONDS_MAX, description="Seconds to wait for that.")
]


class Routes:
    """The HTTP routes of one trainer's agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def get_decision(
        self,
        member: MemberQuery,
        purpose: PurposeQuery,
        jurisdiction: Annotated[str | None, Query(max_length=6)] = None,
        category: Annotated[str | None, Query(max_length=64)] = None,
        collected_at: Annotated[str | None, Query(max_length=40)] = None,
        at_least: TokenQuery = None,
        wait: WaitQuery = 2.0,
    ) -> Response:
        """Answer at the agent whether a member's data, or a row of it, may be used."""
        collected: str | int | None = collected_at
        if collected_at and collected_at.isdecimal():
            collected = int(collected_at)
        return await self._decide(
            DecideIn(
                member=member,
                purpose=purpose,
                jurisdiction=jurisdiction,
                category=category,
                collected_at=collected,
                at_least=at_least,
                wait=wait,
            )
        )

    async def post_decision(self, request: Request) -> Response:
        """Answer at the agent a question in the body, where no log of paths has it."""
        _, body = await read_body(request, (JSON,))
        data = parse_object(body, frozenset(DecideIn.model_fields))
        try:
            question = DecideIn.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise field_problem(field, f"does not fit: {first['msg']}") from None
        return await self._decide(question)

    async def _decide(self, question: DecideIn) -> Response:
        agent = self._agent
        agent.require_ready()
        row = Row(
            jurisdiction=question.jurisdiction,
            category=question.category,
            collected=json_micros_of(question.collected_at),
        )
        purpose = parse_name(question.purpose, what="purpose")
        await agent.reach(question.at_least, question.wait)
        decision = agent.follower.decide(
            question.member,
            purpose=purpose,
            row=row,
            at_least=question.at_least,
            wait_seconds=0.0,
        )
        return decision_response(decision, snapshot_id=agent.follower.snapshot_id)

    async def post_mask(
        self,
        request: Request,
        purpose: Annotated[str | None, Query(description="For an Arrow body.")] = None,
        member_col: Annotated[
            str, Query(description="For an Arrow body, as the other columns.")
        ] = "member_id",
        jurisdiction_col: str | None = None,
        category_col: str | None = None,
        collected_col: str | None = None,
        at_least: TokenQuery = None,
        wait: WaitQuery = 2.0,
        reasons: bool = False,
    ) -> Response:
        """Decide which rows may be used: one answer a row, all decided at once.

        The answers are in the order of the rows.

        Answers JSON, or by `Accept` one byte a row (application/octet-stream: 1 allowed, 0 not) or
        an Arrow stream with the columns `allowed` and `reason`.
        """
        agent = self._agent
        agent.require_ready()
        kind, body = await read_body(request, (JSON, ARROW))
        if kind == JSON:
            question = await agent.questions.run(lambda: mask_question(body))
        else:
            columns = ColumnSpec(
                member=member_col,
                jurisdiction=jurisdiction_col,
                category=category_col,
                collected=collected_col,
            )
            table = await agent.questions.run(lambda: table_of_arrow(body, columns))
            question = MaskQuestion(table, required_purpose(purpose), at_least, wait, reasons)
        accepted = request.headers.get("accept", "")
        await agent.reach(question.at_least, question.wait_seconds)

        def answer() -> Response:
            follower = agent.follower
            decisions = follower.decide_table(
                question.table.rows,
                purpose=question.purpose,
                columns=question.table.columns,
                at_least=question.at_least,
                wait_seconds=0.0,
            )
            return mask_response(
                decisions,
                accepted,
                snapshot_id=follower.snapshot_id,
                stale_detail=follower.stale_detail,
                with_reasons=question.with_reasons,
            )

        return await agent.questions.run(answer)

    async def post_check(
        self,
        request: Request,
        file: Annotated[
            list[str] | None, Query(description="For a lakeFS event: paths in the branch.")
        ] = None,
        purpose: str = "genai_training",
        member_col: str = "member_id",
        jurisdiction_col: str | None = None,
        category_col: str | None = None,
        collected_col: str | None = None,
        at_least: TokenQuery = None,
        wait: WaitQuery = 2.0,
        show_members: Annotated[int, Query(ge=0, le=SHOWN_MAX)] = 0,
    ) -> Response:
        """Check for the agent's caller that all rows of files, or of the body, are allowed.

        200 if they are; any other status stops lakeFS. The body names files, is the event of a
        lakeFS webhook, or is the data itself. With data or an event the parameters say the rest.
        """
        agent = self._agent
        agent.require_ready()
        kind, body = await read_body(request, (JSON, ARROW, PARQUET))
        columns = ColumnSpec(
            member=member_col,
            jurisdiction=jurisdiction_col,
            category=category_col,
            collected=collected_col,
        )
        question = CheckQuestion(columns, required_purpose(purpose), at_least, wait, show_members)
        if kind == JSON:
            question = check_question(body, file or [], question)
        await agent.reach(question.at_least, question.wait_seconds)
        report = await agent.checks.run(lambda: _checked(agent, question, kind, body))
        return check_response(report)

    async def get_events(
        self,
        purpose: Annotated[
            list[str] | None, Query(description="Only of these; default: all of the agent.")
        ] = None,
        last_event_id: Annotated[
            str | None, Header(max_length=64, description="Go on after this event.")
        ] = None,
    ) -> StreamingResponse:
        """Stream events: exclusion, pause, lift, policy, freshness, purge_order, status, lost.

        `lost` means that events are gone, and that whoever keeps answers has to ask again about
        each.
        """
        agent = self._agent
        agent.require_ready()
        for name in purpose or ():
            if name not in agent.purposes:
                raise InvalidInput(
                    f"Events are sent for {', '.join(agent.purposes)}, not for {name[:64]!r}.",
                    code="agent.purpose",
                    fix="start the agent with --purpose for each",
                )
        stream = agent.feed.read(
            last_event_id, purposes=purpose or agent.purposes, greeting=agent.freshness
        )
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def get_status(self) -> dict[str, Any]:
        """Report the agent's freshness, positions and counts; no member ids."""
        agent = self._agent
        return {
            **agent.follower.status(),
            **agent.freshness(),
            "ready": agent.is_ready,
            "purposes": list(agent.purposes),
        }

    async def get_health(self) -> Response:
        """Report whether the agent follows the log at all, for a liveness probe."""
        return probe_response(self._agent.follower.is_following, "")

    async def get_readiness(self) -> Response:
        """Report whether the agent's answers are fresh now, for a readiness probe."""
        detail = self._agent.follower.stale_detail
        return probe_response(not detail, detail)


def _checked(agent: Agent, question: CheckQuestion, kind: str, body: bytes) -> CheckReport:
    """Return the report about the files of a question, or about a body of this media type."""
    check = Check(
        agent.follower,
        purpose=question.purpose,
        at_least=question.at_least,
        show_max=question.show_members,
        seconds_max=agent.check_seconds,
    )
    if kind != JSON:
        check.add("the body", _body_batches(kind, body, question.columns))
        return check.report
    for data_file, name in agent.files(question.paths):
        if not check.add(name, read_batches(data_file, question.columns)):
            break
    return check.report


def _body_batches(kind: str, body: bytes, columns: ColumnSpec) -> Batches:
    if kind == PARQUET:
        yield from read_as(read_parquet, body, columns, {})
    else:
        table = table_of_arrow(body, columns)
        yield table.rows, table.columns
