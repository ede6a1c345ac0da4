"""The responses of the trainer's agent: decisions, masks, reports of checks, and probes."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa
from fastapi import Response

from consentry.domain.decisions import Decision
from consentry.domain.errors import Unavailable
from consentry.domain.explain import sentences
from consentry.domain.values import Reason
from consentry.ops.http.problems import Problem
from consentry.trainer.agent.bodies import ARROW, BYTES, JSON
from consentry.trainer.checking.check import CheckOutcome, CheckReport
from consentry.trainer.deciding.decide_table import REASONS, Decisions
from consentry.wire.jurisdictions import name_of

_FRESH_HEADER: Final = "Consentry-Fresh"
_REASON_NAMES: Final = [reason.value for reason in REASONS]


def probe_response(is_ok: bool, detail: str) -> Response:
    """Return the agent's response to a probe: 200, or 503 with the reason."""
    status = 200 if is_ok else 503
    return Response(json.dumps({"ok": is_ok, "detail": detail}), status, {}, JSON)


def decision_response(decision: Decision, *, snapshot_id: str) -> Response:
    """Return the agent's response to one question: the decision as JSON."""
    is_fresh = decision.reason is not Reason.STALE
    data = {
        "allowed": decision.allowed,
        "reason": decision.reason.value,
        "because": list(sentences(decision, name_of)),
        "fresh": is_fresh,
        "snapshot": snapshot_id,
    }
    return Response(json.dumps(data), 200, {_FRESH_HEADER: _flag(is_fresh)}, JSON)


def mask_response(
    decisions: Decisions,
    accepted: str,
    *,
    snapshot_id: str,
    stale_detail: str,
    with_reasons: bool,
) -> Response:
    """Return the agent's decisions about rows, in the media type of `accepted`.

    The type is bytes, Arrow or JSON.
    """
    counts = {reason.value: number for reason, number in decisions.counts().items()}
    # Without rows no row is STALE: what the agent knows of itself has to say it.
    is_stale = bool(counts.get(Reason.STALE.value)) if counts else bool(stale_detail)
    headers = {
        _FRESH_HEADER: _flag(not is_stale),
        "Consentry-View": snapshot_id,
        "Consentry-Counts": json.dumps(counts),
    }
    mask = decisions.mask
    if BYTES in accepted:
        return Response(mask.astype(np.uint8).tobytes(), 200, headers, BYTES)
    if ARROW in accepted:
        return Response(_arrow_stream(decisions), 200, headers, ARROW)
    data: dict[str, Any] = {
        "fresh": not is_stale,
        "snapshot": snapshot_id,
        "rows": len(mask),
        "allowed": int(mask.sum()),
        "counts": counts,
        "mask": mask.tolist(),
    }
    if with_reasons:
        data["reasons"] = [_REASON_NAMES[code] for code in decisions.reasons.tolist()]
    return Response(json.dumps(data), 200, headers, JSON)


def check_response(report: CheckReport) -> Response:
    """Return the agent's response to a check that found nothing: its report.

    Raises Problem: 409 for violations, 503 where a later check may tell, 422 where it may not.
    """
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
    detail, fix = "there was nothing to check", ""
    if problems:
        detail, fix = problems[0].message, problems[0].fix
    is_temporary = bool(report.stale_detail)
    for problem in problems:
        is_temporary = is_temporary or isinstance(problem, Unavailable)
    raise Problem(
        503 if is_temporary else 422,
        f"It cannot be told: {(report.stale_detail or detail).removesuffix('.')}.",
        code="check.cannot_tell",
        fix=fix or "check again once the agent is ready",
        headers={"Retry-After": "5"} if is_temporary else None,
        report=data,
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _arrow_stream(decisions: Decisions) -> bytes:
    """Return an Arrow IPC stream with the columns `allowed` and `reason`."""
    reasons = pa.DictionaryArray.from_arrays(
        pa.array(decisions.reasons, pa.int8()), pa.array(_REASON_NAMES)
    )
    table = pa.table({"allowed": pa.array(decisions.mask), "reason": reasons})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream
