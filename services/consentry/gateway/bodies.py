"""Request bodies, read strictly: bounded, of the announced kind, JSON without repeated keys."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from consentry.gateway.problems import Problem

BODY_BYTES_MAX: Final = 65_536
CONTROL_BYTES_MAX: Final = 512_000
BULK_BYTES_MAX: Final = 8 * 1024 * 1024
_BODY_SECONDS: Final = 15.0

Model = TypeVar("Model", bound=BaseModel)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Problem(
            400,
            "The body names a key twice.",
            code="input.json",
            fix="name each once: which of them counts is not said",
        )
    return found


def _no_number(_text: str) -> NoReturn:
    raise Problem(
        400, "The body holds NaN or Infinity, which JSON does not have.", code="input.json", fix="leave it out"
    )


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)


async def read_body(request: Request, *, kind: str = "application/json", bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole body. Raises Problem: 415 for another kind, 413 beyond `bytes_max`, 408 when it does not come."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != kind:
        raise Problem(
            415, f"The body is not announced as {kind}.", code="input.media_type", fix=f"send Content-Type: {kind}"
        )
    announced = request.headers.get("content-length", "")
    # A number of thousands of digits is none that int() takes; what really comes is counted below.
    if announced.isdecimal() and int(announced[-20:]) > bytes_max:
        _too_large(bytes_max)
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            # Most bodies come whole, with the head.
            chunks, length = [], 0
            async for chunk in request.stream():
                length += len(chunk)
                if length > bytes_max:
                    _too_large(bytes_max)
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            408,
            f"The body did not arrive within {_BODY_SECONDS:.0f} s.",
            code="input.slow",
            fix="send it at once",
            headers={"Connection": "close"},
        ) from None
    return b"".join(chunks)


def _too_large(bytes_max: int) -> NoReturn:
    raise Problem(
        413,
        f"The body has more than {bytes_max} bytes.",
        code="input.too_large",
        fix="split it",
        # What is still on its way is not read.
        headers={"Connection": "close"},
    )


def parse_json(text: bytes) -> Any:
    """The JSON value in a text. Raises Problem 400 for repeated keys, NaN, too much depth, and what is no JSON."""
    try:
        return _DECODER.decode(text.decode())
    except (ValueError, RecursionError) as error:
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else _place_of(error)
        raise Problem(
            400, f"The body is not JSON: {detail}.", code="input.json", fix="send one JSON value, in UTF-8"
        ) from None


def _place_of(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return "it holds a number of too many digits"


def read_model(model: type[Model], text: bytes) -> Model:
    """The JSON object in a text as a model, strictly: no repeated keys, no number for a text.

    Raises Problem: 400 for what is no JSON, 422 naming the first field that does not fit, never its value.
    """
    try:
        found = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        parse_json(text)  # says it better, where it is no JSON
        raise _misfit(error) from None
    if _may_repeat_keys(text, len(found.model_fields_set)):
        parse_json(text)
    return found


def _may_repeat_keys(text: bytes, fields: int) -> bool:
    """Whether a flat object of so many different fields may name one twice; False is certain, and cheap to find out.

    Where no colon follows a blank, each key ends in a quote and a colon; a text that holds those two only adds to them.
    """
    return text.count(b'":') != fields or b" :" in text or b"\t:" in text or b"\n:" in text or b"\r:" in text


def validated(model: type[Model], data: Any) -> Model:
    """The data as a model. Raises InvalidInput naming the first field that does not fit, never its value."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _misfit(error) from None


def _misfit(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:80] or "the body"
    return Problem(
        422,
        f"{field!r} does not fit: {first['msg'].removeprefix('Value error, ')}.",
        code="input.field",
        fix="see /openapi.json for what it may hold",
        field=field,
    )
