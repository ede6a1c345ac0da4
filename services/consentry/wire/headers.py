"""The headers of a message: read once and with care, bounded when they are kept, and never a reason to allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import methodcaller
from typing import Any, Final

from confluent_kafka import Message

HEADERS_MAX: Final = 32
HEADER_NAME_BYTES_MAX: Final = 128
HEADER_VALUE_BYTES_MAX: Final = 512

Header = tuple[str, bytes | None]
Headers = Sequence[Header]
_ask: Final = methodcaller("headers")
"""Unlike a call that the interpreter has specialised, this one always looks whether an error was left behind."""
UNREADABLE: Final[Headers] = ()
"""Headers that could not be read; None stands for a message without any."""


def headers_of(message: Message) -> Headers | None:
    """The headers of a consumed message, None without any, UNREADABLE where a name is not UTF-8.

    For such a name the client returns a list with a hole in it and leaves an error pending. Called in the plain way,
    that error comes up at whatever is done next, and touching the hole ends the process: one message would end every
    worker, after each restart again. So this is the one place that asks, it asks once, and in a way that checks.
    """
    try:
        found: Any = _ask(message)
    except (SystemError, UnicodeDecodeError):
        return UNREADABLE
    return found or None


def headers_of_all(messages: Iterable[Message]) -> list[Headers | None]:
    """`headers_of` for many messages: the hot path asks for those of every message there is."""
    found: list[Any] = []
    take, ask = found.append, _ask
    for message in messages:
        try:
            take(ask(message))
        except (SystemError, UnicodeDecodeError):
            take(UNREADABLE)
    return found


def are_refused(headers: Headers | None) -> bool:
    """Whether a message with these headers is refused: they could not be read, or there are too many."""
    return headers is not None and not 0 < len(headers) <= HEADERS_MAX


def kept_headers(headers: Headers | None, ours: Mapping[str, str]) -> list[Header]:
    """What a quarantined message carries: its first 32 headers, each name and value cut to a bound, then ours.

    An original header that bears one of our names is left out: whoever reads the first of two would believe it.
    """
    original = [
        (_cut(name), None if value is None else value[:HEADER_VALUE_BYTES_MAX])
        for name, value in (headers or ())[:HEADERS_MAX]
    ]
    told: Iterable[Header] = ((name, value.encode()) for name, value in ours.items())
    return [*(header for header in original if header[0] not in ours), *told]


def _cut(name: str) -> str:
    return name.encode()[:HEADER_NAME_BYTES_MAX].decode(errors="ignore")
