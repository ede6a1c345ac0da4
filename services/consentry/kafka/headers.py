"""The headers of a message as the Kafka client gives them: read once, and with care."""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller
from typing import Any, Final

from confluent_kafka import Message

from consentry.wire.headers import UNREADABLE, Headers

_ask: Final = methodcaller("headers")
"""Unlike a call that the interpreter has specialised, this one always looks whether an error was
left behind.
"""


def headers_of(message: Message) -> Headers | None:
    """The headers of a consumed message, None without any, UNREADABLE where a name is not UTF-8.

    For such a name the client returns a list with a hole in it and leaves an error pending. Called
    in the plain way, that error comes up at whatever is done next, and touching the hole ends the
    process: one message would end every worker, after each restart again. So this is the one place
    that asks, it asks once, and in a way that checks.
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
