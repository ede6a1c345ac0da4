"""The events that producers send and the values they hold, for users of the SDK to import.

It loads nothing but the domain. `ConsentProducer` has a method for each; the classes are for those
who make events themselves, such as in an outbox.
"""

from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated, SentEvent
from consentry.domain.values import AgeBand, Choice, MemberId, Micros

__all__ = [
    "AgeBand",
    "Choice",
    "ConsentChanged",
    "MemberErased",
    "MemberId",
    "MemberRelocated",
    "Micros",
    "SentEvent",
]
