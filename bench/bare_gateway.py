"""The peer of the gateway, as a team would write it first.

It has FastAPI, a model, fastavro and one producer, and nothing of what the real gateway adds: no
checks, no credentials, no limits, no idempotency, no token, no headers.
`python -m bench.bare_gateway` serves `POST /v1/consent-changes` until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import uuid

import uvicorn
import uvloop
from confluent_kafka import KafkaError, Message, Producer
from fastapi import FastAPI
from pydantic import BaseModel

from consentry.kafka.clients import producer_config
from consentry.kafka.schema_registry import HttpRegistry
from consentry.wire.catalog import load_catalog
from consentry.wire.schemas import schema


class BareChange(BaseModel):
    """A consent change."""

    member_id: str
    purpose: str
    choice: str


def build(producer: Producer, topic: str, frame: bytes) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    consent_changed = schema("ConsentChanged")

    @app.post("/v1/consent-changes", status_code=202)
    async def accept(change: BareChange) -> dict[str, str]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def note(error: KafkaError | None, _message: Message) -> None:
            assert error is None
            loop.call_soon_threadsafe(done.set_result, None)

        event_id = uuid.uuid4()
        now = time.time_ns() // 1000
        fields = change.model_dump() | {
            "event_id": event_id.bytes,
            "effective_at": now,
            "recorded_at": now,
            "legal_basis": "CONSENT",
            "notice_version": "",
            "source": "bare",
            "observed_version": None,
            "evidence": None,
        }
        value = frame + consent_changed.encode(fields)
        producer.produce(topic, value, change.member_id.encode(), on_delivery=note)
        await done
        return {"event_id": str(event_id)}

    return app


def main() -> None:
    """Serve on a port from the operating system, and print the address."""
    namespace = os.environ["CONSENTRY_NAMESPACE"]
    kafka = {"bootstrap.servers": os.environ["CONSENTRY_KAFKA_BOOTSTRAP"]}
    catalog = load_catalog(HttpRegistry(os.environ["CONSENTRY_REGISTRY_URL"]), namespace)
    producer = Producer(producer_config(kafka, "bare"))

    def poll() -> None:
        while True:
            producer.poll(0.1)

    threading.Thread(target=poll, daemon=True).start()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    app = build(producer, f"{namespace}.member-events", catalog.frame_of("ConsentChanged"))
    _, port = listener.getsockname()
    print(json.dumps({"event": "bare", "url": f"http://127.0.0.1:{port}"}), flush=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
