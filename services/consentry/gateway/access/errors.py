"""The errors that keep a caller out of the gateway.

Everybody gets the same words; the cause is in our debug log.

ConsentryError
├── Unauthenticated            401: no credential, or one that is not valid; nothing was read or
written
└── Forbidden                  403: the caller is known, but not allowed to do this
"""

from __future__ import annotations

from consentry.domain.errors import ConsentryError


class Unauthenticated(ConsentryError):
    """Raised where a request to the gateway has no valid credential.

    It always has the same words, so that nobody learns which part of a guess was right.
    """

    def __init__(self) -> None:
        super().__init__(
            "The request has no valid credential.",
            code="auth.unauthenticated",
            fix="send `Authorization: Bearer …` with an API key or a token that is valid for this "
            "gateway",
        )


class Forbidden(ConsentryError):
    """Raised where the gateway knows the caller, but the caller has no right to the request.

    It never names the subject of the question, only what the caller would need.
    """

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message, code="auth.forbidden", fix=fix)


class BadCredential(Exception):
    """Raised in the gateway's access checks for a credential that is not valid.

    It never leaves this package.

    `cause` is a word of ours for the debug log.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
