"""The error of a bundle that a reader does not believe: one class, a code for each reason."""

from __future__ import annotations

from typing import Final

from consentry.domain.errors import Refused

CODES: Final = (
    "bundle.altered",
    "bundle.bomb",
    "bundle.chain",
    "bundle.expired",
    "bundle.file_name",
    "bundle.foreign",
    "bundle.forged",
    "bundle.from_the_future",
    "bundle.key_unknown",
    "bundle.malformed",
    "bundle.missing",
    "bundle.rolled_back",
    "bundle.special_file",
    "bundle.too_large",
    "bundle.truncated",
    "bundle.unsigned",
)
"""Every code that a BundleRefused carries."""

_FIX: Final = "take a bundle from its bundler again, and find out who writes to the store"


class BundleRefused(Refused):
    """Raised when a bundle is not what its bundler signed, or not what its reader asked for.

    Nothing of it may be used.
    """

    def __init__(self, word: str, message: str, *, fix: str = _FIX) -> None:
        assert f"bundle.{word}" in CODES, word
        super().__init__(message, code=f"bundle.{word}", fix=fix)
