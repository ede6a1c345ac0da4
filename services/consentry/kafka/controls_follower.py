"""Controls that a thread reads from Kafka, for services that decide or open purge orders."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import monotonic
from typing import Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Message

from consentry.domain.controls import Control, Controls, PauseImposed
from consentry.domain.errors import Unavailable
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.values import Micros
from consentry.kafka.clients import stored
from consentry.kafka.follower import LogFollower, PositionLost
from consentry.ops.clock import Clock
from consentry.wire.catalog import Catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS

_END_SECONDS: Final = 0.5
"""Time between two questions to the broker where the topic ends."""
_SCOPE_NAMES_LOGGED_MAX: Final = 10
_LOG = structlog.get_logger(__name__)

MISUNDERSTANDINGS: Final = ("unreadable", "scope")
"""The parts of a control that may not be understood: its bytes, or whom it covers.

Either way it pauses everything.
"""


def misunderstanding(control: Control, *, offset: int, jurisdictions: Jurisdictions) -> str | None:
    """Return the kind of fault for which a control read from Kafka pauses all, or None.

    It is one of MISUNDERSTANDINGS; None if the control is understood.

    `control` comes from `read_control_or_pause`, and stands at `offset`.
    """
    if not isinstance(control, PauseImposed):
        return None
    if not control.scope.jurisdictions and control.pause == f"unreadable-{offset}":
        return "unreadable"
    if not Controls(jurisdictions).understands(control):
        return "scope"
    return None


class ControlsFollower:
    """Reads the controls topic of Kafka from its beginning, on a thread of its own.

    `controls` is the value as of the last message read. With a `clock` the broker is asked for the
    end of the topic every half second, so that silence differs from lag.

    A topic that no longer holds what was read of it, because it was truncated or made anew, is not
    followed further: what it says now may lack a pause that was read, or hold one that would be
    skipped. A new follower begins anew.
    """

    def __init__(
        self,
        kafka: Mapping[str, str],
        *,
        namespace: str,
        catalog: Catalog,
        clock: Clock | None = None,
    ) -> None:
        self.fresh_at = Micros(0)
        """All that had been appended by this time, on the given clock, is in `controls`."""
        self.controls = Controls(iso_jurisdictions())
        self._clock = clock
        self._end_asked_at = 0.0
        self._not_understood: tuple[tuple[str, PauseImposed], ...] = ()
        self._catalog = catalog
        self._log = LogFollower(
            kafka,
            namespace=namespace,
            name="controls",
            starts={(CONTROLS, 0): OFFSET_BEGINNING},
            positions={},
            lost_fix="start the service anew, so that it reads the controls from the beginning",
            never_goes_back=True,
        )
        self._at_end = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controls", daemon=True)

    def start(self) -> None:
        """Begin to read the controls topic."""
        self._thread.start()

    @property
    def position(self) -> int:
        """The next offset of the controls topic: every control below it is in `controls`."""
        return self._log.position(CONTROLS, 0)

    @property
    def is_alive(self) -> bool:
        """True while the thread reads the controls topic."""
        return self._thread.is_alive()

    def not_understood(self, kind: str, now: Micros) -> int:
        """Return how many pauses stand in for controls of the topic not understood this way.

        Each pauses everything; those that were lifted do not count.
        """
        controls = self.controls
        pauses: dict[tuple[str, int], PauseImposed] = {}
        for pause_kind, pause in self._not_understood:
            if pause_kind == kind:
                pauses[pause.pause, pause.version] = pause
        count = 0
        for pause in pauses.values():
            if not controls.is_lifted(pause, at=now, known_at=now):
                count += 1
        return count

    def wait_until_read(self, timeout_seconds: float) -> None:
        """Return once all that the controls topic held at the start is read.

        Raises Unavailable after that time.
        """
        if not self._at_end.wait(timeout_seconds):
            raise Unavailable(
                f"The controls could not be read to their end within {timeout_seconds:.0f} s.",
                code="kafka.stalled",
                fix="check the broker; the call may be repeated",
            )

    def stop(self) -> None:
        """End the thread that reads the controls topic, within a moment."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._log.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for _, message in self._log.data_messages(self._log.poll(0.2)):
                    self._apply(message)
            except PositionLost as error:
                _LOG.error("controls_lost", position=self.position, offset=error.offset)
                return
            if self._log.reached_ends:
                self._at_end.set()
            self._prove_freshness()

    def _apply(self, message: Message) -> None:
        stored_message = stored(message)
        control = read_control_or_pause(
            stored_message.value,
            offset=stored_message.offset,
            appended_at=stored_message.appended_at,
            catalog=self._catalog,
        )
        self._note(control, stored_message.offset)
        self.controls = self.controls.after(control)
        # Only now: whoever sees the position relies on the control being there.
        self._log.move(CONTROLS, 0, stored_message.offset + 1)

    def _prove_freshness(self) -> None:
        """Ask where the topic ends.

        If all of it has been read, that was so at the time before the question.
        """
        if self._clock is None or monotonic() - self._end_asked_at < _END_SECONDS:
            return
        self._end_asked_at, asked_at = monotonic(), self._clock()
        try:
            end = self._log.end_now(CONTROLS, 0, timeout_seconds=1.0)
        except Unavailable as error:
            _LOG.warning("controls_unavailable", detail=str(error))
            return
        if self.position == end:
            self.fresh_at = asked_at
        elif self.position > end:
            _LOG.error("controls_truncated", position=self.position, end=end)

    def _note(self, control: Control, offset: int) -> None:
        """Remember and log a control that is not understood.

        Everything is paused now, and somebody has to learn why.
        """
        kind = misunderstanding(control, offset=offset, jurisdictions=self.controls.jurisdictions)
        if kind is None or not isinstance(control, PauseImposed):
            return
        self._not_understood = (*self._not_understood, (kind, control))
        _LOG.error(
            "control_not_understood",
            kind=kind,
            offset=offset,
            pause=control.pause,
            version=control.version,
            scope=control.scope.jurisdictions[:_SCOPE_NAMES_LOGGED_MAX],
        )
