"""The controls of the log, followed by a thread: what a service that decides or opens orders looks
at.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import monotonic
from typing import Final

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from consentry.domain.controls import Control, Controls, PauseImposed
from consentry.domain.errors import Unavailable
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.values import Micros
from consentry.kafka.clients import follower_config, place_of, stored
from consentry.ops.clock import Clock
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS, topic_name

_ASK_SECONDS: Final = 0.5
_POSITION_LOST: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_LOG = structlog.get_logger(__name__)

MISUNDERSTANDINGS: Final = ("unreadable", "scope")
"""What may not be understood of a control: its bytes, or whom it covers.

Either way it pauses everything.
"""


def misunderstanding(control: Control, *, offset: int, jurisdictions: Jurisdictions) -> str | None:
    """Which of MISUNDERSTANDINGS a control from `read_control_or_pause` is, as it stood at
    `offset`; None for none.
    """
    if not isinstance(control, PauseImposed):
        return None
    if not control.scope.jurisdictions and control.pause == f"unreadable-{offset}":
        return "unreadable"
    return None if Controls(jurisdictions).understands(control) else "scope"


class ControlsFollower:
    """Follows the controls topic from its beginning;

    `controls` is the value as of the last message read.

    With a `clock` the broker is asked for the end of the topic every half second, so that silence
    differs from lag. A topic that no longer holds what was read of it, because it was truncated or
    made anew, is not followed further: what it says now may lack a pause that was read, or hold one
    that would be skipped. A new view begins anew.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        *,
        namespace: str,
        catalog: Catalog,
        clock: Clock | None = None,
    ) -> None:
        self.position = 0
        """Next offset: every control below it is in `controls`."""
        self.fresh_at = Micros(0)
        """All that had been appended by this time, on the given clock, is in `controls`."""
        self._clock = clock
        self._asked_at = 0.0
        self.controls = Controls(iso_jurisdictions())
        self._not_understood: tuple[tuple[str, PauseImposed], ...] = ()
        self._catalog = catalog
        self._consumer = Consumer(follower_config(kafka, "consentry-controls"))
        self._place = TopicPartition(topic_name(namespace, CONTROLS), 0, OFFSET_BEGINNING)
        self._consumer.assign([self._place])
        self._at_end = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controls", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the controls are still followed."""
        return self._thread.is_alive()

    def not_understood(self, kind: str, now: Micros) -> int:
        """How many pauses of everything stand in for a control of this kind of misunderstanding and
        are not lifted.
        """
        controls = self.controls
        found = {
            (pause.pause, pause.version): pause
            for known, pause in self._not_understood
            if known == kind
        }
        return sum(not controls.is_lifted(pause, at=now, known_at=now) for pause in found.values())

    def wait_until_read(self, timeout_seconds: float) -> None:
        """Return once everything there was at the start is read.

        Raises Unavailable after that time.
        """
        if not self._at_end.wait(timeout_seconds):
            raise Unavailable(
                f"The controls could not be read to their end within {timeout_seconds:.0f} s.",
                code="kafka.stalled",
                fix="check the broker; the call may be repeated",
            )

    def stop(self) -> None:
        """End, within a moment."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(500, 0.2):
                if self._is_lost(message):
                    _LOG.error("controls_lost", position=self.position, offset=message.offset())
                    return
                self._take(message)
            self._prove_freshness()

    def _is_lost(self, message: Message) -> bool:
        """Whether the topic no longer goes on from where it was read."""
        error, offset = message.error(), message.offset()
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return offset is not None and offset < self.position
        return error.fatal() or error.code() in _POSITION_LOST

    def _take(self, message: Message) -> None:
        try:
            _, offset, is_end = place_of(message)
        except Unavailable as error:
            _LOG.warning("controls_unavailable", detail=str(error))
            return
        if is_end:
            self.position = offset
            self._at_end.set()
            return
        found = stored(message)
        control = read_control_or_pause(
            found.value, offset=offset, appended_at=found.appended_at, catalog=self._catalog
        )
        self._note(control, offset)
        self.controls = self.controls.after(control)
        self.position = offset + 1

    def _prove_freshness(self) -> None:
        """Ask where the topic ends; if all of it has been read, that is known as of before the
        question.
        """
        if self._clock is None or monotonic() - self._asked_at < _ASK_SECONDS:
            return
        self._asked_at, asked_at = monotonic(), self._clock()
        try:
            _, end = self._consumer.get_watermark_offsets(self._place, timeout=1.0, cached=False)
        except KafkaException as error:
            _LOG.warning("controls_unavailable", detail=str(error))
            return
        if self.position == end:
            self.fresh_at = asked_at
        elif self.position > end:
            _LOG.error("controls_truncated", position=self.position, end=end)

    def _note(self, control: Control, offset: int) -> None:
        """Remember and report what is not understood: everything is paused now, and somebody has to
        hear why.
        """
        kind = misunderstanding(control, offset=offset, jurisdictions=self.controls.jurisdictions)
        if kind is not None and isinstance(control, PauseImposed):
            self._not_understood = (*self._not_understood, (kind, control))
            said = {
                "pause": control.pause,
                "version": control.version,
                "scope": control.scope.jurisdictions[:10],
            }
            _LOG.error("control_not_understood", kind=kind, offset=offset, **said)
