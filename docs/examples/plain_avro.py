"""Send an opt-out with confluent-kafka alone: python plain_avro.py BROKERS REGISTRY
ConsentChanged.avsc MEMBER.
"""

import sys
import time
import uuid

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

_, brokers, registry_url, schema_file, member = sys.argv
topic, now = "consentry.member-events", time.time_ns() // 1000
with open(schema_file) as file, SchemaRegistryClient({"url": registry_url}) as registry:
    serialize = AvroSerializer(
        registry,
        file.read(),
        conf={
            "auto.register.schemas": False,  # only Consentry registers schemas
            # several types share the topic
            "subject.name.strategy": topic_record_subject_name_strategy,
        },
    )
    value = serialize(
        {
            "event_id": uuid.uuid4().bytes,
            "choice": "OPT_OUT",
            "legal_basis": "CONSENT",
            "effective_at": now,
            "recorded_at": now,
            "purpose": "genai_training",
            "notice_version": "",
            "source": "my-service",
            "member_id": member,
            "observed_version": None,
            "evidence": None,
        },
        SerializationContext(topic, MessageField.VALUE),
    )
producer = Producer(
    {
        "bootstrap.servers": brokers,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
    }
)
producer.produce(topic, key=member, value=value)
assert producer.flush(30) == 0
