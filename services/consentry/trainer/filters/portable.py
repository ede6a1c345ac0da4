"""The form in which a filter's decider is sent to other processes.

A client follows the log on a thread of its own, so it lives in one process only.
"""

from __future__ import annotations

from typing import cast

from consentry.domain.errors import Unavailable
from consentry.trainer.deciding.decider import Decider


def portable(decider: Decider) -> Decider:
    """Return a filter's decider in a form that may be sent to other processes.

    librdkafka does not survive a fork, and a client cannot be pickled: in another process it would
    answer for ever by what was known when that process began, or not at all. Raises Refused for a
    client that is not shared.
    """
    make = getattr(decider, "portable", None)
    if make is not None:
        return cast(Decider, make())
    return decider


class Stale(Unavailable):
    """Raised where a filter allows nothing any more, as freshness is not proven.

    It can be pickled.
    """


def stale(decider: Decider) -> Stale:
    """Return the error that ends a filtered stream whose rows cannot be decided.

    An epoch that ends early must not look whole.
    """
    detail = decider.stale_detail or "what the token demands is not there yet"
    return Stale(
        f"No row is allowed any more: {detail}.",
        code="trainer.stale",
        fix="see that the processor and the broker run, then go on from the last state",
    )
