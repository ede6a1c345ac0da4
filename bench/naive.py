"""The peer of the processor, as most would write it first.

A Faust agent takes one event at a time, with one HSET for each. Run it as
`python -m bench.naive TOPIC HASH COUNT CLIENT`; it prints a JSON line at the first event and at the
last. It has the settings of our own Faust agents, which make Faust as fast as it can be.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from typing import Any

import fastavro
import faust
import redis
import redis.asyncio

from consentry.kafka.schema_registry import HttpRegistry
from consentry.processor.service import FAUST_SETTINGS
from consentry.wire.frames import FRAME_LENGTH, schema_id_of

BUFFER_EVENTS = 16_384


def print_line(event: str, **fields: Any) -> None:
    """Print one JSON line to standard output."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Readers:
    """Parsed schemas by id, each fetched from the registry once."""

    def __init__(self, url: str) -> None:
        self._registry = HttpRegistry(url)
        self._parsed: dict[int, Any] = {}

    def read(self, value: bytes) -> Any:
        """Return the fields of one framed event."""
        schema_id = schema_id_of(value)
        parsed = self._parsed.get(schema_id)
        if parsed is None:
            text = self._registry.text(schema_id) or ""
            parsed = self._parsed[schema_id] = fastavro.parse_schema(json.loads(text))
        return fastavro.schemaless_reader(io.BytesIO(value[FRAME_LENGTH:]), parsed, None)


class Progress:
    """Counts events, prints when the first and the last came, and ends the process after that."""

    def __init__(self, count: int) -> None:
        self._left = count

    def begin(self) -> None:
        """Note that the first event is in hand."""
        print_line("first_event", at=time.time())

    def done(self) -> None:
        """Note that one more event has reached the table."""
        self._left -= 1
        if self._left == 0:
            print_line("last_event", at=time.time())
            time.sleep(0.2)  # so that the reader of this line can still ask for our CPU time
            os._exit(0)


def content(fields: Any) -> str:
    """Return what the table keeps of an event."""
    if "choice" in fields:
        return f"{fields['purpose']}={fields['choice']}@{fields['effective_at']}"
    return f"lives={fields['jurisdiction']}@{fields['effective_at']}"


def main(topic_name: str, table: str, count: int, client: str) -> None:
    """Consume until `count` events are in the hash `table`."""
    environment = os.environ
    url = environment["CONSENTRY_REDIS_URL"]
    readers, progress = Readers(environment["CONSENTRY_REGISTRY_URL"]), Progress(count)
    blocking: Any = redis.Redis.from_url(url, protocol=3)
    waiting: Any = redis.asyncio.Redis.from_url(url, protocol=3)
    with tempfile.TemporaryDirectory() as directory:
        app: Any = faust.App(
            f"{table}-group",
            broker=f"kafka://{environment['CONSENTRY_KAFKA_BOOTSTRAP']}",
            datadir=directory,
            stream_buffer_maxsize=BUFFER_EVENTS,
            **FAUST_SETTINGS,
        )

        async def store(events: Any) -> None:
            progress_begun = False
            async for event in events.events():
                if not progress_begun:
                    progress_begun = True
                    progress.begin()
                fields = readers.read(event.value)
                if client == "asyncio":
                    await waiting.hset(table, fields["member_id"], content(fields))
                else:
                    blocking.hset(table, fields["member_id"], content(fields))
                progress.done()

        app.agent(app.topic(topic_name, key_serializer="raw", value_serializer="raw"))(store)
        worker = faust.Worker(
            app, loglevel="WARNING", override_logging=False, redirect_stdouts=False
        )
        worker.execute_from_commandline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
