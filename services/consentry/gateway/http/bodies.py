"""Bodies of HTTP requests to the gateway: their bounds, and the models for their JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from consentry.ops.http.bodies import parse_json, read_body_of
from consentry.ops.http.problems import Problem

BODY_BYTES_MAX: Final = 65_536
CONTROL_BYTES_MAX: Final = 512_000
BULK_BYTES_MAX: Final = 8 * 1024 * 1024
_BODY_SECONDS: Final = 15.0

Model = TypeVar("Model", bound=BaseModel)


async def read_body(
    request: Request, *, kind: str = "application/json", bytes_max: int = BODY_BYTES_MAX
) -> bytes:
    """Return the whole body of a request to the gateway, of one kind.

    Raises Problem as `read_body_of`.
    """
    _, body = await read_body_of(request, (kind,), bytes_max=bytes_max, seconds_max=_BODY_SECONDS)
    return body


async def read_model(request: Request, model: type[Model]) -> tuple[bytes, Model]:
    """Return the whole body of a request to the gateway, and the model in it.

    Raises Problem as `read_body` and `parse_model`.
    """
    body = await read_body(request)
    return body, parse_model(model, body)


def parse_model(
    model: type[Model], text: bytes, *, parse: Callable[[bytes], Any] = parse_json
) -> Model:
    """Return the JSON object in the body of a request to the gateway as a model.

    It is read strictly: no repeated keys, no number for a text.

    `parse` says what is wrong with a text that is not JSON. Raises Problem: 400 for what is not
    JSON, 422 naming the first field that does not fit, never its value.
    """
    try:
        fields = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        parse(text)  # raises a better error, where the text is not JSON
        raise _misfit(error) from None
    if _may_repeat_keys(text, len(fields.model_fields_set)):
        parse(text)
    return fields


def _may_repeat_keys(text: bytes, fields: int) -> bool:
    """Return whether a flat object of `fields` different fields may name one twice.

    False is certain, and cheap. Where no colon follows a blank, each key ends in a quote and a
    colon: `{"a":1,"b":2}` has two `":`. A text value that holds those two characters only adds to
    the count.
    """
    return (
        text.count(b'":') != fields
        or b" :" in text
        or b"\t:" in text
        or b"\n:" in text
        or b"\r:" in text
    )


def validated(model: type[Model], data: Any) -> Model:
    """Return the data in the body of a request to the gateway as a checked model.

    Raises Problem 422 naming the first field that does not fit, never its value.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _misfit(error) from None


def _misfit(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ".".join(map(str, first["loc"]))
    field = path[:80] or "the body"
    return Problem(
        422,
        f"{field!r} does not fit: {first['msg'].removeprefix('Value error, ')}.",
        code="input.field",
        fix="see /openapi.json for what it may hold",
        field=field,
    )
