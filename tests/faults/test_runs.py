"""Training while members opt out, authorities pause, and broker, table or processor fail.

200 tries: 120 opt-outs and 20 pauses in the middle of an epoch, and 20 opt-outs just before each of
three outages.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from tests.stack import (
    PURPOSE,
    SHARED,
    Running,
    World,
    lives_in,
    opted_out,
    pause,
    reason,
    wait_for,
)

from consentry.domain.values import Micros
from consentry.local.stack import LocalStack
from consentry.ops.clock import system_clock
from consentry.trainer.client import Client
from consentry.trainer.runs import ConsentStale, TrainingRun

pytestmark = pytest.mark.stack

BOUND_SECONDS = 3.0
"""The bound of freshness: rows are handed out by all that was recorded longer ago than this."""
SCHEDULING_SECONDS = 0.5
"""The time for which the machine may suspend the thread between its decision and its note."""
OFF = 3600.0
LEAVING = [f"leaving-{number}" for number in range(120)]
PLACES = ["AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI"]
PLACES += ["FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV", "MT"]
OUTAGES = ("redis", "processor", "kafka")
LOST = {service: [f"{service}-{number}" for number in range(20)] for service in OUTAGES}
STAYING = "staying"
EPOCH = pa.table(
    {
        "member_id": [
            STAYING,
            *LEAVING,
            *(f"in-{place}" for place in PLACES),
            *(member for members in LOST.values() for member in members),
        ],
        "jurisdiction": ["US"] * (1 + len(LEAVING)) + PLACES + ["US"] * 60,
    }
)


class Training(threading.Thread):
    """Reads epoch after epoch, and remembers when each member was last handed out."""

    def __init__(
        self,
        client: Client,
        directory: Path,
        *,
        lease_seconds: float = BOUND_SECONDS,
        waits: bool = False,
    ) -> None:
        super().__init__(name="training", daemon=True)
        self.training_run = TrainingRun(
            client,
            dataset="posts",
            purpose=PURPOSE,
            store=str(directory),
            subscriber="ranker",
            lease_seconds=lease_seconds,
            stale="wait" if waits else "raise",
        )
        self.last: dict[str, Micros] = {}
        self.batches = 0
        self.stopped_at: Micros | None = None
        self.failure: BaseException | None = None
        self._enough = threading.Event()

    def run(self) -> None:
        """Train."""
        try:
            with self.training_run as run:
                for batch in run.filter(self._loader()):
                    self.note(batch)
        except ConsentStale:
            self.stopped_at = system_clock()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            self.failure = error

    def note(self, batch: pa.Table) -> None:
        """Take note that a batch was handed out."""
        handed_out_at = system_clock()
        self.last.update(dict.fromkeys(batch["member_id"].to_pylist(), handed_out_at))
        self.batches += 1

    def _loader(self) -> Iterator[pa.Table]:
        while not self._enough.wait(0.002):
            for start in range(0, EPOCH.num_rows, 67):
                yield EPOCH.slice(start, 67)

    def finish(self) -> None:
        """Have the epoch end."""
        self._enough.set()
        self.join(60)
        assert self.failure is None, self.failure

    def late(self, acknowledged: dict[str, Micros]) -> list[str]:
        """Return the members who were handed out later than the bound after their exclusion."""
        allowed = round((BOUND_SECONDS + SCHEDULING_SECONDS) * 1e6)
        return [
            member for member, at in acknowledged.items() if self.last.get(member, 0) > at + allowed
        ]


class DecidedAhead(Training):
    """Training without the guard: all rows are decided once, before it begins, as many jobs do."""

    def __init__(self, client: Client, directory: Path) -> None:
        super().__init__(client, directory)
        self._usable = client.filter(EPOCH, purpose=PURPOSE)

    def run(self) -> None:
        """Train."""
        while not self._enough.wait(0.01):
            self.note(self._usable)


class SharedWorld:
    """One world for all tries, with its processor and its clients."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.worker: Running = world.processor()
        world.open_policy()
        world.produce(
            *(
                lives_in(member)
                for member in EPOCH["member_id"].to_pylist()
                if not member.startswith("in-")
            )
        )
        self.guarded = world.client("guarded", staleness_seconds=BOUND_SECONDS)
        self.unguarded = world.client("unguarded", staleness_seconds=OFF)
        self.wait_fresh()

    def wait_fresh(self) -> None:
        """Return once both clients answer again.

        Where the processor ended, another is started, as a supervisor does.
        """

        def both_answer() -> bool:
            if not self.worker.is_running:
                self.worker = self.world.processor()
            reasons = [reason(client, STAYING) for client in (self.guarded, self.unguarded)]
            return reasons == ["DEFAULT_ON", "DEFAULT_ON"]

        wait_for(both_answer, "fresh answers", seconds=60)

    def opt_out(self, *members: str) -> dict[str, Micros]:
        """Have members opt out together; return the time at which that was acknowledged."""
        self.world.produce(*(opted_out(member) for member in members))
        return dict.fromkeys(members, system_clock())


@pytest.fixture(scope="module")
def shared_world(
    shared: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedWorld]:
    """The world that all tries share; each leaves it whole."""
    SHARED.mend()
    world = World(shared, tmp_path_factory.mktemp("runs"))
    try:
        yield SharedWorld(world)
    finally:
        world.close()
        SHARED.mend()


def test_nobody_who_opted_out_or_was_paused_mid_epoch_is_handed_out_after_the_bound(
    shared_world: SharedWorld, tmp_path: Path
) -> None:
    """140 tries. An epoch that was filtered before it began hands out every one of them.

    That shows what protects them: each batch is decided when it is asked for.
    """
    training = Training(shared_world.guarded, tmp_path, waits=True)
    ahead = DecidedAhead(shared_world.guarded, tmp_path)
    training.start()
    ahead.start()
    wait_for(lambda: len(training.last) == EPOCH.num_rows, "everybody is trained on", seconds=30)
    acknowledged: dict[str, Micros] = {}
    for number, member in enumerate(LEAVING):
        acknowledged |= shared_world.opt_out(member)
        if number % 6 == 0:
            place = PLACES[number // 6]
            shared_world.world.control(pause(f"of-{place.lower()}", place))
            acknowledged[f"in-{place}"] = system_clock()
        time.sleep(0.01)
    time.sleep(BOUND_SECONDS + 3 * SCHEDULING_SECONDS)
    training.finish()
    ahead.finish()

    assert len(acknowledged) == 140
    assert training.late(acknowledged) == []
    assert training.last[STAYING] > max(acknowledged.values()), "it trained on"
    certificate = training.training_run.certificate
    assert certificate is not None
    assert (certificate["disjoint"]["holds"], certificate["members_read"]) == (True, EPOCH.num_rows)
    assert len(ahead.late(acknowledged)) == 140, "the guard is what protects"


@pytest.mark.parametrize("service", OUTAGES)
def test_nobody_who_opted_out_before_an_outage_is_handed_out_after_the_bound(
    shared_world: SharedWorld, tmp_path: Path, service: str
) -> None:
    """20 tries each. No client hears of these opt-outs.

    A run whose staleness check is off trains on them.
    """
    shared_world.wait_fresh()
    training = Training(shared_world.guarded, tmp_path)
    unguarded = Training(shared_world.unguarded, tmp_path, lease_seconds=OFF)
    training.start()
    unguarded.start()
    wait_for(lambda: training.batches > 5 and unguarded.batches > 5, "both train")
    shared_world.worker.freeze()
    acknowledged = shared_world.opt_out(*LOST[service])
    with _service_away(shared_world, service):
        began_at = system_clock()
        training.join(BOUND_SECONDS + 20)
        assert training.stopped_at is not None, (training.failure, training.training_run.state)
        enough = max(acknowledged.values()) + round((BOUND_SECONDS + 3 * SCHEDULING_SECONDS) * 1e6)
        time.sleep(max(0.0, (enough - system_clock()) / 1e6))
        unguarded.finish()

    assert training.late(acknowledged) == []
    assert training.training_run.state == "ABORTED"
    assert training.stopped_at - began_at < (BOUND_SECONDS + 2 * SCHEDULING_SECONDS) * 1e6, (
        "stopped within its bound"
    )
    assert STAYING in training.last
    with pytest.raises(ConsentStale):
        training.training_run.filter(EPOCH)
    assert set(unguarded.last) >= set(LOST[service])
    assert len(unguarded.late(acknowledged)) == 20, "the guard is what protects"


@contextmanager
def _service_away(shared_world: SharedWorld, service: str) -> Iterator[None]:
    """Have the service away for the time of the block.

    The processor was frozen before, so it never saw the opt-outs.
    """
    stack = shared_world.world.stack
    if service != "processor":
        os.kill(stack.processes[service], signal.SIGKILL)
        wait_for(lambda: service not in stack.processes, f"{service} gone")
        shared_world.worker.thaw()
    try:
        yield
    finally:
        if service == "processor":
            shared_world.worker.thaw()
        else:
            stack.start_service(service)
    shared_world.wait_fresh()
