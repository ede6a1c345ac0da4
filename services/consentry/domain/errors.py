"""Every error class of Consentry's domain, sorted by what the caller does next.

ConsentryError                 a sentence: what failed, which value, why; `code` is stable, `fix`
says what to do
├── Refused                    the request or the configuration is wrong: nothing was written,
correct it
│   ├── InvalidInput           a value given by a person or a file does not fit
│   └── UnsafeSetting          a broker, table or topic is set up in a way that could lose an
exclusion
├── Unavailable                something outside did not answer: try again, nothing is known to be
lost
├── Fenced                     another owner holds the partition now: stop, and claim anew
├── TableWentBack              the table no longer holds what it held: rewind or rebuild
└── UndecodableEvent           the bytes cannot be read: quarantine them and hold the member
"""

from __future__ import annotations

from typing import Any


class ConsentryError(Exception):
    """The base of all errors of Consentry: a stable `code`, and the `fix` for a person.

    `str(error)` is one paragraph.
    """

    def __init__(self, message: str, *, code: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send theirs home; what an exception does by itself leaves out keywords.
        return _again, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        text = f"{self.message} [{self.code}]"
        return f"{text} Fix: {self.fix}" if self.fix else text


def _again(
    kind: type[ConsentryError], args: tuple[Any, ...], state: dict[str, Any]
) -> ConsentryError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class Refused(ConsentryError):
    """Error of the domain: the request or configuration is wrong; nothing was written."""


class InvalidInput(Refused):
    """Error of the domain: a value given by a person or a file does not fit."""


class UnsafeSetting(Refused):
    """Error of the domain: broker, table or topic is set up so that an exclusion may be lost."""


class Unavailable(ConsentryError):
    """Error of the domain: something outside did not answer; the call may be repeated."""


class Fenced(ConsentryError):
    """Error of the domain: another owner has claimed the partition since."""


class TableWentBack(ConsentryError):
    """Error of the domain: the consent table holds less than it once acknowledged.

    That comes from a fail-over, a torn file or a wipe.
    """


class UndecodableEvent(ConsentryError):
    """Error of the domain: the bytes of a message cannot be read as an event.

    `error_class` is one word of a closed list, safe as a metric label; the message never holds
    payload text.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(
            message, code=f"undecodable.{error_class}", fix="the raw bytes are in quarantine"
        )
        self.error_class = error_class
