"""Errors cross processes whole: workers send theirs home."""

from __future__ import annotations

import pickle

import pytest

from consentry.bundles import BundleRefused
from consentry.domain.errors import ConsentryError, InvalidInput, Unavailable, UndecodableEvent
from consentry.wire.records import DamagedRecord


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("No answer.", code="kafka.unavailable", fix="wait"),
        InvalidInput("Not one.", code="input.column"),
        UndecodableEvent("time_window", "Too late."),
        BundleRefused("forged", "Not signed by us."),
        DamagedRecord("a bit"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_after_it_was_sent(error: ConsentryError) -> None:
    """A worker whose error cannot be read back ends a job with no word of why."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert type(again) is type(error)
    assert (str(again), again.code, again.fix, vars(again)) == (
        str(error),
        error.code,
        error.fix,
        vars(error),
    )
