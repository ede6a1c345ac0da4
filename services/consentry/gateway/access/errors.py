"""What keeps a caller out. Both say the same to everybody: why exactly stays in our debug log.

ConsentryError
├── Unauthenticated            401: no credential, or one that is not valid; nothing was read or
written
└── Forbidden                  403: the caller is known, but not allowed to do this
"""

from __future__ import annotations

from consentry.domain.errors import ConsentryError


class Unauthenticated(ConsentryError):
    """No valid credential.

    Always the same words, so that nobody learns which part of a guess was right.
    """

    def __init__(self) -> None:
        super().__init__(
            "The request has no valid credential.",
            code="auth.unauthenticated",
            fix="send `Authorization: Bearer …` with an API key or a token that is valid for this "
            "gateway",
        )


class Forbidden(ConsentryError):
    """The caller is known, but may not do this.

    Never names what is asked about, only what it would take.
    """

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message, code="auth.forbidden", fix=fix)


class BadCredential(Exception):
    """Why a credential is not valid, in one word of ours for the debug log; never leaves this
    package.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
