"""The questions in mask and check requests to the trainer's agent, read from their bodies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from consentry.domain.values import parse_name
from consentry.trainer.agent.bodies import (
    Table,
    field_problem,
    parse_object,
    table_of_json,
    text_field,
)
from consentry.trainer.agent.models import CheckIn, MaskIn
from consentry.trainer.agent.service import WAIT_SECONDS_MAX, Paths, lakefs_paths
from consentry.trainer.deciding.columns import ColumnSpec

SHOWN_MAX: Final = 1_000
"""Members that a check may show, for each file."""
_FILES_MAX: Final = 1_000
_NO_PATHS: Final = Paths(())


@dataclass(frozen=True, slots=True)
class MaskQuestion:
    """A mask request to the trainer's agent: rows to decide about, for a purpose."""

    table: Table
    purpose: str
    at_least: str | None
    wait_seconds: float
    with_reasons: bool


@dataclass(frozen=True, slots=True)
class CheckQuestion:
    """A check request to the trainer's agent: files or data to check, for a purpose.

    `paths` is empty where the body is the data.
    """

    columns: ColumnSpec
    purpose: str
    at_least: str | None
    wait_seconds: float
    show_members: int
    paths: Paths = _NO_PATHS


def required_purpose(purpose: str | None) -> str:
    """Return the purpose that a request to the agent has to name.

    Raises Problem and InvalidInput.
    """
    if purpose is None:
        raise field_problem("purpose", "is not given")
    return parse_name(purpose, what="purpose")


def mask_question(body: bytes) -> MaskQuestion:
    """Return the question in the JSON body of a mask request to the agent.

    Raises Problem and InvalidInput.
    """
    data = parse_object(body, frozenset(MaskIn.model_fields))
    return MaskQuestion(
        table_of_json(data),
        required_purpose(text_field(data, "purpose")),
        text_field(data, "at_least"),
        _wait_seconds(data),
        data.get("reasons") is True,
    )


def check_question(body: bytes, files: list[str], parameters: CheckQuestion) -> CheckQuestion:
    """Return the question in the JSON body of a check request to the agent.

    Raises Problem and InvalidInput.

    Of a lakeFS event only the branch is used: `files` are paths in it, and `parameters` say the
    rest.
    """
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and "event_type" in event:
        return replace(parameters, paths=lakefs_paths(event, files))
    data = parse_object(body, frozenset(CheckIn.model_fields))
    return CheckQuestion(
        columns=ColumnSpec(
            member=text_field(data, "member_col") or "member_id",
            jurisdiction=text_field(data, "jurisdiction_col"),
            category=text_field(data, "category_col"),
            collected=text_field(data, "collected_col"),
        ),
        purpose=required_purpose(text_field(data, "purpose") or "genai_training"),
        at_least=text_field(data, "at_least"),
        wait_seconds=_wait_seconds(data),
        show_members=_show_members(data),
        paths=Paths(_file_names(data)),
    )


def _file_names(data: Mapping[str, Any]) -> list[str]:
    names = data.get("files")
    if not isinstance(names, list) or not names:
        raise field_problem("files", "is not a list of paths")
    if not all(isinstance(name, str) for name in names):
        raise field_problem("files", "is not a list of paths")
    if len(names) > _FILES_MAX:
        raise field_problem("files", f"has more than {_FILES_MAX} paths; name their directory")
    return names


def _show_members(data: Mapping[str, Any]) -> int:
    count = data.get("show_members", 0)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= SHOWN_MAX:
        raise field_problem("show_members", f"is not a number from 0 to {SHOWN_MAX}")
    return count


def _wait_seconds(data: Mapping[str, Any]) -> float:
    seconds = data.get("wait", 2.0)
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise field_problem("wait", f"is not a number of seconds from 0 to {WAIT_SECONDS_MAX:g}")
    return float(seconds)
