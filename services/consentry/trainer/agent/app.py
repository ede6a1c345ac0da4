"""The agent as an ASGI application: its routes and their description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from consentry.domain.decisions import Decision, Row
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.explain import sentences
from consentry.domain.values import Reason, parse_name
from consentry.ops.http.problems import (
    Problem,
    ProblemOut,
    add_problem_handlers,
    described_problems,
)
from consentry.ops.metrics import Metrics
from consentry.trainer.agent.bodies import (
    ARROW,
    BYTES,
    JSON,
    PARQUET,
    Table,
    field_problem,
    parse_object,
    read_body,
    table_of_arrow,
    table_of_json,
    text_field,
)
from consentry.trainer.agent.models import (
    CheckIn,
    CheckOut,
    DecideIn,
    MaskIn,
    MaskOut,
    SnapshotDecisionOut,
)
from consentry.trainer.agent.problems import fault
from consentry.trainer.agent.service import WAIT_SECONDS_MAX, Agent, Paths, lakefs_paths
from consentry.trainer.checking.check import Batches, Check, CheckOutcome, CheckReport
from consentry.trainer.checking.data_files import (
    read_as,
    read_batches,
    read_parquet,
)
from consentry.trainer.deciding.columns import ColumnSpec, json_micros_of
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.wire.jurisdictions import name_of

_ALWAYS: Final = (400, 401, 403, 408, 431, 500, 503)
"""Statuses of problems that every route may answer with."""
_FILES_MAX: Final = 1_000
_SHOWN_MAX: Final = 1_000
_REASON_NAMES: Final = [reason.value for reason in REASONS]

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


def build_app(agent: Agent, metrics: Metrics) -> FastAPI:
    """The application over an agent."""
    app = FastAPI(
        title="Consentry agent",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    add_problem_handlers(app, fault=fault)
    routes = _Routes(agent)
    app.add_api_route(
        "/v1/decide",
        routes.get_decision,
        methods=["GET"],
        response_model=SnapshotDecisionOut,
        responses=_problems(422),
    )
    app.add_api_route(
        "/v1/decide",
        routes.post_decision,
        methods=["POST"],
        response_model=SnapshotDecisionOut,
        responses=_problems(413, 415, 422),
        openapi_extra=_body({JSON: DecideIn}),
    )
    app.add_api_route(
        "/v1/mask",
        routes.post_mask,
        methods=["POST"],
        response_model=MaskOut,
        responses=_problems(413, 415, 422),
        openapi_extra=_body({JSON: MaskIn, ARROW: None}),
    )
    app.add_api_route(
        "/v1/check",
        routes.post_check,
        methods=["POST"],
        response_model=CheckOut,
        responses=_problems(409, 413, 415, 422),
        openapi_extra=_body({JSON: CheckIn, ARROW: None, PARQUET: None}),
    )
    stream: dict[int | str, dict[str, Any]] = {
        200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}
    }
    app.add_api_route(
        "/v1/events",
        routes.get_events,
        methods=["GET"],
        response_class=StreamingResponse,
        responses={**stream, **_problems(422)},
    )
    app.add_api_route("/v1/status", routes.get_status, methods=["GET"], responses=_problems())
    app.add_api_route("/healthz", routes.get_health, methods=["GET"], include_in_schema=False)
    app.add_api_route("/readyz", routes.get_readiness, methods=["GET"], include_in_schema=False)

    async def get_metrics() -> Response:
        return Response(
            await asyncio.to_thread(metrics.text),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    async def get_description() -> dict[str, Any]:
        return describe(app)

    app.add_api_route("/metrics", get_metrics, methods=["GET"], include_in_schema=False)
    app.add_api_route("/openapi.json", get_description, methods=["GET"], include_in_schema=False)
    return app


class _Routes:
    """What the routes answer."""

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
        """May this member's data, or a row of it, be used?"""
        collected = int(collected_at) if collected_at and collected_at.isdecimal() else collected_at
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
        """The same with the question in the body, where no log of paths has it."""
        _, body = await read_body(request, (JSON,))
        try:
            asked = DecideIn.model_validate(parse_object(body, frozenset(DecideIn.model_fields)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise field_problem(
                ".".join(map(str, first["loc"])), f"does not fit: {first['msg']}"
            ) from None
        return await self._decide(asked)

    async def _decide(self, asked: DecideIn) -> Response:
        agent = self._agent
        agent.require_ready()
        row = Row(
            jurisdiction=asked.jurisdiction,
            category=asked.category,
            collected=json_micros_of(asked.collected_at),
        )
        purpose = parse_name(asked.purpose, what="purpose")
        await agent.reach(asked.at_least, asked.wait)
        found = agent.follower.decide(
            asked.member, purpose=purpose, row=row, at_least=asked.at_least, wait_seconds=0.0
        )
        data = _decision(found) | {"snapshot": agent.follower.snapshot_id}
        return Response(json.dumps(data), 200, {_FRESH: _flag(data["fresh"])}, JSON)

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
        """Which of these rows may be used? One answer a row, in their order, all judged at once.

        Answers JSON, or by `Accept` one byte a row (application/octet-stream: 1 allowed, 0 not) or
        an Arrow stream with the columns `allowed` and `reason`.
        """
        agent = self._agent
        agent.require_ready()
        kind, body = await read_body(request, (JSON, ARROW))
        if kind == JSON:
            asked = await agent.questions.run(lambda: _mask_of_json(body))
        else:
            columns = ColumnSpec(
                member=member_col,
                jurisdiction=jurisdiction_col,
                category=category_col,
                collected=collected_col,
            )
            table = await agent.questions.run(lambda: table_of_arrow(body, columns))
            asked = _Mask(table, _purpose(purpose), at_least, wait, reasons)
        accepted = request.headers.get("accept", "")
        await agent.reach(asked.at_least, asked.wait)

        def answer() -> Response:
            decisions = agent.follower.decide_table(
                asked.table.rows,
                purpose=asked.purpose,
                columns=asked.table.columns,
                at_least=asked.at_least,
                wait_seconds=0.0,
            )
            return _mask_response(decisions, agent, accepted, with_reasons=asked.reasons)

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
        show_members: Annotated[int, Query(ge=0, le=_SHOWN_MAX)] = 0,
    ) -> Response:
        """Are all rows of these files, or of this body, allowed?

        200 if so; any other status stops lakeFS.

        The body names files, is the event of a lakeFS webhook, or is the data itself. With data or
        an event the parameters say the rest.
        """
        agent = self._agent
        agent.require_ready()
        kind, body = await read_body(request, (JSON, ARROW, PARQUET))
        asked = _CheckAsked(
            ColumnSpec(
                member=member_col,
                jurisdiction=jurisdiction_col,
                category=category_col,
                collected=collected_col,
            ),
            _purpose(purpose),
            at_least,
            wait,
            show_members,
        )
        paths = Paths([])
        if kind == JSON:
            paths, asked = _files_of_json(body, file or [], asked)
        await agent.reach(asked.at_least, asked.wait)

        def check() -> CheckReport:
            found = Check(
                agent.follower,
                purpose=asked.purpose,
                at_least=asked.at_least,
                show_max=asked.show_members,
                seconds_max=agent.check_seconds,
            )
            if kind == JSON:
                for data_file, name in agent.files(paths):
                    if not found.add(name, read_batches(data_file, asked.columns)):
                        break
            else:
                found.add("the body", _batches_of_body(kind, body, asked.columns))
            return found.report

        return _check_response(await agent.checks.run(check))

    async def get_events(
        self,
        purpose: Annotated[
            list[str] | None, Query(description="Only of these; default: all of the agent.")
        ] = None,
        last_event_id: Annotated[
            str | None, Header(max_length=64, description="Go on after this event.")
        ] = None,
    ) -> StreamingResponse:
        """What happens, as it happens: exclusion, pause, lift, policy, freshness, purge_order,
        status, lost.

        `lost` means that events are gone, and that whoever keeps answers has to ask again about
        each.
        """
        agent = self._agent
        agent.require_ready()
        for name in purpose or ():
            if name not in agent.purposes:
                raise InvalidInput(
                    f"Events are told for {', '.join(agent.purposes)}, not for {name[:64]!r}.",
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
        """How fresh it is, how far it has read, how much it holds; no member ids."""
        agent = self._agent
        return {
            **agent.follower.status(),
            **agent.freshness(),
            "ready": agent.is_ready,
            "purposes": list(agent.purposes),
        }

    async def get_health(self) -> Response:
        """Whether it follows at all: what liveness looks at."""
        return _probe(self._agent.follower.is_following, "")

    async def get_readiness(self) -> Response:
        """Whether answers are fresh now."""
        detail = self._agent.follower.stale_detail
        return _probe(not detail, detail)


_FRESH: Final = "Consentry-Fresh"


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _probe(ok: bool, detail: str) -> Response:
    return Response(json.dumps({"ok": ok, "detail": detail}), 200 if ok else 503, {}, JSON)


def _decision(found: Decision) -> dict[str, Any]:
    return {
        "allowed": found.allowed,
        "reason": found.reason.value,
        "because": list(sentences(found, name_of)),
        "fresh": found.reason is not Reason.STALE,
    }


def _purpose(given: str | None) -> str:
    if given is None:
        raise field_problem("purpose", "is not given")
    return parse_name(given, what="purpose")


@dataclass(frozen=True, slots=True)
class _Mask:
    table: Table
    purpose: str
    at_least: str | None
    wait: float
    reasons: bool


def _mask_of_json(body: bytes) -> _Mask:
    data = parse_object(body, frozenset(MaskIn.model_fields))
    return _Mask(
        table_of_json(data),
        _purpose(text_field(data, "purpose")),
        text_field(data, "at_least"),
        _wait(data),
        data.get("reasons") is True,
    )


def _wait(data: Mapping[str, Any]) -> float:
    found = data.get("wait", 2.0)
    if (
        isinstance(found, bool)
        or not isinstance(found, int | float)
        or not 0 <= found <= WAIT_SECONDS_MAX
    ):
        raise field_problem("wait", f"is not a number of seconds from 0 to {WAIT_SECONDS_MAX:g}")
    return float(found)


def _mask_response(
    decisions: Decisions, agent: Agent, accepted: str, *, with_reasons: bool
) -> Response:
    counts = {reason.value: number for reason, number in decisions.counts().items()}
    is_fresh = not counts.get(Reason.STALE.value) and (
        bool(counts) or not agent.follower.stale_detail
    )
    snapshot, mask = agent.follower.snapshot_id, decisions.mask
    headers = {
        _FRESH: _flag(is_fresh),
        "Consentry-View": snapshot,
        "Consentry-Counts": json.dumps(counts),
    }
    if BYTES in accepted:
        return Response(mask.astype(np.uint8).tobytes(), 200, headers, BYTES)
    if ARROW in accepted:
        reasons = pa.DictionaryArray.from_arrays(
            pa.array(decisions.reasons, pa.int8()), pa.array(_REASON_NAMES)
        )
        return Response(
            _ipc(pa.table({"allowed": pa.array(mask), "reason": reasons})), 200, headers, ARROW
        )
    data: dict[str, Any] = {
        "fresh": is_fresh,
        "snapshot": snapshot,
        "rows": len(mask),
        "allowed": int(mask.sum()),
        "counts": counts,
        "mask": mask.tolist(),
    }
    if with_reasons:
        data["reasons"] = [_REASON_NAMES[place] for place in decisions.reasons.tolist()]
    return Response(json.dumps(data), 200, headers, JSON)


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found


@dataclass(frozen=True, slots=True)
class _CheckAsked:
    columns: ColumnSpec
    purpose: str
    at_least: str | None
    wait: float
    show_members: int


def _files_of_json(body: bytes, files: list[str], asked: _CheckAsked) -> tuple[Paths, _CheckAsked]:
    """The files that a body names, and what it asks about them; of a lakeFS event only the branch
    is taken.
    """
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and "event_type" in event:
        return lakefs_paths(event, files), asked
    data = parse_object(body, frozenset(CheckIn.model_fields))
    names = data.get("files")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise field_problem("files", "is not a list of paths")
    if len(names) > _FILES_MAX:
        raise field_problem("files", f"has more than {_FILES_MAX} paths; name their directory")
    shown = data.get("show_members", 0)
    if isinstance(shown, bool) or not isinstance(shown, int) or not 0 <= shown <= _SHOWN_MAX:
        raise field_problem("show_members", f"is not a number from 0 to {_SHOWN_MAX}")
    columns = ColumnSpec(
        member=text_field(data, "member_col") or "member_id",
        jurisdiction=text_field(data, "jurisdiction_col"),
        category=text_field(data, "category_col"),
        collected=text_field(data, "collected_col"),
    )
    purpose = text_field(data, "purpose") or "genai_training"
    return Paths(names), _CheckAsked(
        columns, _purpose(purpose), text_field(data, "at_least"), _wait(data), shown
    )


def _batches_of_body(kind: str, body: bytes, columns: ColumnSpec) -> Batches:
    if kind == PARQUET:
        yield from read_as(read_parquet, body, columns, {})
    else:
        found = table_of_arrow(body, columns)
        yield found.rows, found.columns


def _check_response(report: CheckReport) -> Response:
    data = report.as_data()
    if report.outcome is CheckOutcome.CLEAN:
        return Response(json.dumps(data), 200, {}, JSON)
    if report.outcome is CheckOutcome.VIOLATIONS:
        raise Problem(
            409,
            f"{data['violations']} of {data['rows']} rows may not be used for {report.purpose}.",
            code="check.violations",
            fix="leave them out, and check again",
            report=data,
        )
    problems = [file.problem for file in report.files if file.problem is not None]
    is_passing = bool(report.stale_detail) or any(
        isinstance(problem, Unavailable) for problem in problems
    )
    detail = report.stale_detail or next(
        (problem.message for problem in problems), "there was nothing to check"
    )
    raise Problem(
        503 if is_passing else 422,
        f"It cannot be told: {detail.removesuffix('.')}.",
        code="check.cannot_tell",
        fix=next((problem.fix for problem in problems), "")
        or "check again once the agent is ready",
        headers={"Retry-After": "5"} if is_passing else None,
        report=data,
    )


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for these problems and for those that every route may give."""
    return described_problems((*_ALWAYS, *statuses))


def _body(kinds: Mapping[str, type[BaseModel] | None]) -> dict[str, Any]:
    content = {
        kind: {
            "schema": {"type": "string", "format": "binary"}
            if model is None
            else {"$ref": f"#/components/schemas/{model.__name__}"}
        }
        for kind, model in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of the agent."""
    if app.openapi_schema is None:
        found = get_openapi(
            title="Consentry agent",
            version="1",
            summary="Who may be used for training, answered on this machine.",
            description="Whatever is not known, not fresh or not understood is not allowed. "
            "Problems carry a stable "
            "`code` and the `fix`.",
            routes=app.routes,
        )
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        models: tuple[type[BaseModel], ...] = (ProblemOut, DecideIn, MaskIn, CheckIn)
        for model in models:
            schemas[model.__name__] = model.model_json_schema(
                ref_template="#/components/schemas/{model}"
            )
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        found["components"]["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "Where the agent has a token file.",
            }
        }
        found["security"] = [{}, {"bearer": []}]
        app.openapi_schema = found
    return app.openapi_schema
