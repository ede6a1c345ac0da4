"""The headers of a message as the Kafka client gives them: read once, and with care."""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller
from typing import Any, Final

from confluent_kafka import Message

from consentry.wire.headers import UNREADABLE, Headers

_ask: Final = methodcaller("headers")
"""Unlike a call that the interpreter has specialised, this one always checks whether an error was
left behind.
"""


def headers_of(message: Message) -> Headers | None:
    """Return the headers of a message that the Kafka client gave.

    UNREADABLE where the name of a header is not UTF-8.

    None if it has none. For such a name the client returns a list with a hole in it and leaves an
    error pending. Called in the plain way, that error comes up at the next operation, whatever that
    is, and touching the hole ends the process: one message would end every worker, again after each
    restart. So this is the one place that asks, it asks once, and in a way that checks.
    """
    try:
        headers: Any = _ask(message)
    except (SystemError, UnicodeDecodeError):
        return UNREADABLE
    return headers or None


def headers_of_all(messages: Iterable[Message]) -> list[Headers | None]:
    """Return the headers of each message that the Kafka client gave, as `headers_of` does.

    The hot path asks for those of every message.
    """
    all_headers: list[Any] = []
    take, ask = all_headers.append, _ask
    for message in messages:
        try:
            take(ask(message))
        except (SystemError, UnicodeDecodeError):
            take(UNREADABLE)
    return all_headers
