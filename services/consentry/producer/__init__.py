"""The producer SDK: a service embeds it to send consent events.

It sends consent changes with its own Kafka client; each is acknowledged and gives a token.
"""

from consentry.kafka.sender import QueueFull
from consentry.producer.acceptance import Acceptance, EventUndelivered
from consentry.producer.asynchronous import AsyncConsentProducer
from consentry.producer.sync import ConsentProducer
from consentry.wire.tokens import TokenKeys

__all__ = [
    "Acceptance",
    "AsyncConsentProducer",
    "ConsentProducer",
    "EventUndelivered",
    "QueueFull",
    "TokenKeys",
]
