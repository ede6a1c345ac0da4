"""Bodies of the agent's requests and responses: for OpenAPI, and to check small bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Texts = list[str | int | None]


class DecideIn(BaseModel):
    """A question to the trainer's agent about one member, or one row of theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)

    member: Annotated[str, Field(description="Pseudonym of the member.", examples=["m:42"])]
    purpose: Annotated[
        str, Field(description="What the data would be used for.", examples=["genai_training"])
    ]
    jurisdiction: Annotated[
        str | None, Field(max_length=6, description="Where the row comes from.")
    ] = None
    category: Annotated[str | None, Field(max_length=64, description="Category of the row.")] = None
    collected_at: Annotated[
        str | int | None,
        Field(description="When the row was collected: ISO 8601, or microseconds since 1970 UTC."),
    ] = None
    at_least: Annotated[
        str | None,
        Field(max_length=4096, description="Consistency token: the answer is as fresh, or STALE."),
    ] = None
    wait: Annotated[float, Field(ge=0, le=10, description="Seconds to wait for that.")] = 2.0


class MaskIn(BaseModel):
    """A question to the trainer's agent about many rows, as lists side by side.

    One value in place of a list holds for all of them.
    """

    purpose: str
    member_id: Texts = Field(
        description="Send texts: JavaScript has no integers above 2^53. At most 1,000,000."
    )
    jurisdiction: Texts | str | None = None
    category: Texts | str | None = None
    collected_at: Texts | str | int | None = None
    at_least: str | None = None
    wait: float = 2.0
    reasons: bool = Field(False, description="Also return the reason of each row.")


class CheckIn(BaseModel):
    """A request to the trainer's agent to check files.

    In its place may stand the body that lakeFS sends to a webhook of pre-commit or pre-merge.
    """

    files: list[str] = Field(
        description="Paths of files and directories, relative to a root of the agent."
    )
    purpose: str = "genai_training"
    member_col: str = "member_id"
    jurisdiction_col: str | None = None
    category_col: str | None = None
    collected_col: str | None = None
    at_least: str | None = None
    wait: float = 2.0
    show_members: int = Field(0, ge=0, le=1000)


class SnapshotDecisionOut(BaseModel):
    """The agent's answer to one question. Where `fresh` is false it is STALE, which excludes."""

    allowed: bool
    reason: str
    because: list[str]
    fresh: bool
    snapshot: str = Field(description="Names the records and controls that it rests on.")


class MaskOut(BaseModel):
    """The agent's answers about many rows: one for each row, in their order."""

    fresh: bool
    snapshot: str
    rows: int
    allowed: int
    counts: dict[str, int]
    mask: list[bool]
    reasons: list[str] | None = None


class CheckOut(BaseModel):
    """The agent's report of a check of files: 200 if clean, else a problem with the same report.

    The problem holds it as `report`.
    """

    outcome: Literal["clean", "violations", "cannot_tell"]
    purpose: str
    snapshot: str
    rows: int
    counts: dict[str, int]
    violations: int
    files: list[dict[str, Any]]
    model_config = ConfigDict(extra="allow")
