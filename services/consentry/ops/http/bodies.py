"""Bodies of HTTP requests, read strictly: bounded, of a known kind, no JSON key twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from typing import Any, Final, NoReturn

from fastapi import Request

from consentry.ops.http.problems import Problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Problem(
            400,
            "A key is named twice.",
            code="input.json",
            fix="name each once: it is not clear which of them counts",
        )
    return fields


def _no_number(_text: str) -> NoReturn:
    raise Problem(
        400,
        "It holds NaN or Infinity, which JSON does not have.",
        code="input.json",
        fix="leave it out",
    )


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)


async def read_body_of(
    request: Request, kinds: Collection[str], *, bytes_max: int, seconds_max: float
) -> tuple[str, bytes]:
    """Return media type, one of `kinds`, and whole body of an HTTP request, within limits.

    Raises Problem: 415 for another kind or a compressed body, 413 beyond `bytes_max`, 408 for a
    body that has not arrived after `seconds_max`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        wanted = " or ".join(kinds)
        raise Problem(
            415,
            f"The body is not announced as {wanted}.",
            code="input.media_type",
            fix=f"send Content-Type: {wanted}",
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(
            415,
            "The body is encoded: Content-Encoding is not identity.",
            code="input.encoding",
            fix="send it as it is, not compressed",
            headers={"Accept-Encoding": "identity"},
        )
    announced = request.headers.get("content-length", "")
    # int() refuses thousands of digits; the bytes that really come are counted below.
    if announced.isdecimal() and int(announced[-20:]) > bytes_max:
        _too_large(bytes_max)
    try:
        async with asyncio.timeout(seconds_max):
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
            f"The body did not arrive within {seconds_max:.0f} s.",
            code="input.slow",
            fix="send it at once",
            headers={"Connection": "close"},
        ) from None
    return kind, b"".join(chunks)


def _too_large(bytes_max: int) -> NoReturn:
    raise Problem(
        413,
        f"The body has more than {bytes_max} bytes.",
        code="input.too_large",
        fix="split it",
        # What is still on its way is not read.
        headers={"Connection": "close"},
    )


def parse_json(
    text: bytes, *, what: str = "The body", fix: str = "send one JSON value, in UTF-8"
) -> Any:
    """Return the JSON value in the body of an HTTP request, parsed strictly.

    Raises Problem 400 for repeated keys, NaN, too much depth, and what is not JSON.
    """
    try:
        return _DECODER.decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise Problem(
            400, f"{what} is not JSON: {_detail_of(error)}.", code="input.json", fix=fix
        ) from None


def _detail_of(error: ValueError | RecursionError) -> str:
    """Return what is wrong with a text that is not JSON, without showing any of it."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg}, {line}column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return "it holds a number of too many digits"
