"""The headers of a message as values: bounded when they are kept, and never a reason to allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

HEADERS_MAX: Final = 32
HEADER_NAME_BYTES_MAX: Final = 128
HEADER_VALUE_BYTES_MAX: Final = 512

Header = tuple[str, bytes | None]
Headers = Sequence[Header]
UNREADABLE: Final[Headers] = ()
"""Headers that could not be read; None stands for a message without any."""


def are_refused(headers: Headers | None) -> bool:
    """Whether a message with these headers is refused: they could not be read, or there are too
    many.
    """
    return headers is not None and not 0 < len(headers) <= HEADERS_MAX


def kept_headers(headers: Headers | None, ours: Mapping[str, str]) -> list[Header]:
    """What a quarantined message carries: its first 32 headers, each name and value cut to a bound,
    then ours.

    An original header that bears one of our names is left out: whoever reads the first of two would
    believe it.
    """
    original = [
        (_cut(name), None if value is None else value[:HEADER_VALUE_BYTES_MAX])
        for name, value in (headers or ())[:HEADERS_MAX]
    ]
    told: Iterable[Header] = ((name, value.encode()) for name, value in ours.items())
    return [*(header for header in original if header[0] not in ours), *told]


def _cut(name: str) -> str:
    return name.encode()[:HEADER_NAME_BYTES_MAX].decode(errors="ignore")
