"""Headers of a message's bytes as plain values: bounded if kept, never a reason to allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

HEADERS_MAX: Final = 32
HEADER_NAME_BYTES_MAX: Final = 128
HEADER_VALUE_BYTES_MAX: Final = 512

Header = tuple[str, bytes | None]
Headers = Sequence[Header]
UNREADABLE: Final[Headers] = ()
"""Headers that could not be read; None stands for a message without any."""


def are_refused(headers: Headers | None) -> bool:
    """Say whether a message is refused for its headers: unreadable bytes, or too many."""
    return headers is not None and not 0 < len(headers) <= HEADERS_MAX


def kept_headers(headers: Headers | None, ours: Mapping[str, str]) -> list[Header]:
    """Return the headers for a quarantined message on the wire: its first 32, cut, then ours.

    An original header with one of our names is left out: a reader of the first of two would believe
    it.
    """
    result: list[Header] = []
    for name, value in (headers or ())[:HEADERS_MAX]:
        short_name = _cut(name)
        if short_name not in ours:
            short_value = None if value is None else value[:HEADER_VALUE_BYTES_MAX]
            result.append((short_name, short_value))
    for name, text in ours.items():
        result.append((name, text.encode()))
    return result


def _cut(name: str) -> str:
    return name.encode()[:HEADER_NAME_BYTES_MAX].decode(errors="ignore")
