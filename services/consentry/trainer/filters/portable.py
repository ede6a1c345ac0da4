"""What stands for a judge in another process: a client follows on a thread of its own, and can be
in one only.
"""

from __future__ import annotations

from typing import cast

from consentry.domain.errors import Unavailable
from consentry.trainer.deciding.decider import Decider


def portable(decider: Decider) -> Decider:
    """The judge in a form that may be sent to other processes.

    Raises Refused for a client that is not shared.

    librdkafka does not survive a fork, and a client cannot be pickled: in another process it would
    answer for ever by what was known when that began, or not at all.
    """
    make = getattr(decider, "portable", None)
    if make is not None:
        return cast(Decider, make())
    return decider


class Stale(Unavailable):
    """Nothing is allowed any more, as freshness is not proven; can be sent from one process to
    another.
    """


def stale(decider: Decider) -> Stale:
    """The error that ends a stream whose rows cannot be judged: an epoch that ends early must not
    look whole.
    """
    return Stale(
        "No row is allowed any more: "
        f"{decider.stale_detail or 'what the token demands is not there yet'}.",
        code="trainer.stale",
        fix="see that the processor and the broker run, then go on from the last state",
    )
