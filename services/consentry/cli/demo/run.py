"""One run of `consentry demo`: its processes, the story played to them, and the result."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer
from rich.console import Console

from consentry.cli.connections import open_catalog, open_registry, read_controls
from consentry.cli.consent_table import open_table, read_member
from consentry.cli.demo import texts
from consentry.cli.demo.rules import Findings, Oracle, check_dataset, check_table
from consentry.cli.demo.story import DATASETS, PURPOSE, ChangeEvent, Chapter, StoryMaker
from consentry.cli.demo.watch import Buckets, Journals, percentiles
from consentry.cli.process_group import ProcessGroup
from consentry.domain.controls import Controls
from consentry.domain.errors import Unavailable
from consentry.kafka.clients import producer_config, send
from consentry.kafka.topics import apply_topics, plan_topics
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.wire.catalog import Catalog, register_all
from consentry.wire.controls import control_key, write_control
from consentry.wire.events import write_event
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, topic_name, topics

TRAINERS: Final = tuple(DATASETS)
EVENTS_PER_SECOND: Final = 500
_PATIENCE_SECONDS: Final = 60.0


class DemoRun:
    """Plays the demo's story once over a stack; a context manager that ends its processes."""

    def __init__(self, settings: Settings, work: Path, *, members: int, console: Console) -> None:
        self._settings = settings
        self._work = work
        self._console = console
        self._story = StoryMaker(members)
        self._oracle = Oracle()
        self._sent: list[tuple[str, int, int]] = []
        self._pauses_ms: list[float] = []
        self._events = 0
        self.findings = Findings()
        self._processes = ProcessGroup(work, self._environment(members), self._say)
        self._journals = Journals({name: work / f"{name}.journal" for name in TRAINERS})

    def __enter__(self) -> DemoRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._processes.stop()

    def play(self) -> dict[str, Any]:
        """Play the demo's story, return the result; `ok` is true only if nothing was wrong."""
        before = self._set_up()
        table_buckets = Buckets("consentry_event_to_table_seconds")
        self._let_members_arrive()
        table_buckets.start(self._processes.metrics("processor"))
        for chapter in self._story.chapters(max(10, len(self._story.members) // 80)):
            self._play(chapter)
        self._await_everything()
        table_ms = table_buckets.quantiles(self._processes.metrics("processor"))
        delays, missing = self._journals.delays(self._sent)
        if missing:
            self.findings.notes.append(f"{missing} events never reached a trainer")
        self._check(before)
        self._ask_about_the_past()
        after = sum(pq.read_table(path).num_rows for path in self._paths.values())
        return {
            "ok": self.findings.is_clean and not missing,
            "members": len(self._story.members),
            "events": self._events,
            "trainers": len(TRAINERS),
            "wrong_allowed": self.findings.wrong_allowed,
            "wrong_excluded": self.findings.wrong_excluded,
            "purged_rows": sum(table.num_rows for table in before.values()) - after,
            "rows_left_of_purged_members": self.findings.rows_left,
            "event_to_table_ms": table_ms,
            "event_to_trainer_ms": percentiles(delays),
            "pause_to_trainer_ms": percentiles(self._pauses_ms),
        }

    def next_commands(self) -> str:
        """Return the commands that a person could type after the demo, to look or break it."""
        lines: list[str] = []
        for name, value in sorted(self._environment(0).items()):
            if "TABLE" not in name:
                lines.append(f"export {name}={value}")
        options = [f"--follower {address}" for address in self._follower_addresses()]
        lines.append(f"consentry table verify {' '.join(options)}")
        member = self._quiet_member("HK")
        lines.append(f"consentry explain {member} --at 2024-10-12 --known-at 2024-10-12")
        processor = self._processes.pid("processor")
        lines.append(f"kill -9 {processor}    # the processor; the demo starts it again")
        return "\n".join(f"  {line}" for line in lines)

    def _follower_addresses(self) -> list[str]:
        """Return the metrics addresses of the demo's trainers."""
        addresses = []
        for child in self._processes.children:
            if child.name in TRAINERS:
                addresses.append(child.address)
        return addresses

    def _environment(self, members: int) -> dict[str, str]:
        settings = self._settings
        subscribers = ",".join(f"{trainer}={dataset}" for trainer, dataset in DATASETS.items())
        return {
            "CONSENTRY_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "CONSENTRY_REDIS_URL": settings.redis_url.get_secret_value(),
            "CONSENTRY_REGISTRY_URL": settings.registry_url,
            "CONSENTRY_PROFILE": settings.profile,
            "CONSENTRY_NAMESPACE": settings.namespace,
            "CONSENTRY_SUBSCRIBERS": subscribers,
            "CONSENTRY_TABLE_MEMBERS": str(max(1000, members)),
        }

    def _say(self, line: str) -> None:
        self._print(f"  {line}", style="yellow")

    def _set_up(self) -> dict[str, pa.Table]:
        """Make topics, schemas, data sets and processes; return the data sets as they are now."""
        kafka, namespace = self._settings.kafka(), self._settings.namespace
        register_all(open_registry(self._settings), namespace)
        list(
            apply_topics(
                kafka, plan_topics(kafka, namespace=namespace, profile="local"), profile="local"
            )
        )
        self._catalog: Catalog = open_catalog(self._settings)
        self._producer = Producer(producer_config(kafka, "consentry-demo") | {"linger.ms": 1})
        self._partitions = topics()[MEMBER_EVENTS].partitions["local"]
        self._paths = self._story.write_datasets(self._work / "datasets")
        before = {trainer: pq.read_table(path) for trainer, path in self._paths.items()}
        self._processes.add("processor", ["processor"], CONSENTRY_WORKER_ID="demo-processor")
        for trainer, path in self._paths.items():
            arguments = [
                "trainer",
                "--dataset",
                str(path),
                "--name",
                trainer,
                "--every",
                "0",
                "--purpose",
                PURPOSE,
            ]
            arguments += [
                "--manifest",
                str(self._manifest(trainer)),
                "--journal",
                str(self._work / f"{trainer}.journal"),
            ]
            self._processes.add(trainer, arguments)
        for child in self._processes.children:
            self._processes.await_ready(child.name, timeout_seconds=_PATIENCE_SECONDS)
        self._print_processes()
        rows = sum(table.num_rows for table in before.values())
        self._console.print(texts.size_text(len(self._story.members), rows) + "\n")
        return before

    def _print_processes(self) -> None:
        if self._console.record:
            return  # process numbers would make every picture another one
        names = [
            f"{child.name} {self._processes.pid(child.name)}" for child in self._processes.children
        ]
        self._print(
            f"Running: {', '.join(names)}. Kill any of them with kill -9: it is started again."
        )

    def _print(self, line: str, *, style: str | None = None, markup: bool = False) -> None:
        """Print a line; a terminal wraps it by itself, a picture cannot."""
        is_wrapped_by_terminal = not self._console.record
        self._console.print(line, style=style, markup=markup, soft_wrap=is_wrapped_by_terminal)

    def _manifest(self, trainer: str) -> Path:
        return self._work / f"{trainer}-epoch.parquet"

    def _let_members_arrive(self) -> None:
        events = list(self._story.arrivals())
        started = monotonic()
        self._send(events)
        self._await_members(len(events))
        per_second = len(events) / (monotonic() - started)
        self._print(
            texts.arrival_text(len(events), at=events[-1].recorded_at, per_second=per_second)
        )

    def _await_members(self, count: int) -> None:
        until = monotonic() + _PATIENCE_SECONDS + len(self._story.members) / 2000
        while any(
            self._processes.ask(trainer, "/readyz").get("members", 0) < count
            for trainer in TRAINERS
        ):
            if monotonic() > until:
                raise Unavailable(
                    "The members did not all reach the trainers in time.",
                    code="demo.slow",
                    fix="run it again",
                )
            sleep(0.05)

    def _play(self, chapter: Chapter) -> None:
        """Send the chapter's control, show when each trainer obeyed it, then what members did."""
        self._send_control(chapter)
        rows_before = self._stored_rows()
        self._await_orders()
        purged = rows_before - self._stored_rows()
        if purged > 0:
            self._print(texts.purged_text(purged), style="yellow")
        self._send(chapter.changes, paced=True)
        changed = self._sent[-len(chapter.changes) :]
        self._await_versions(changed)
        delays, _ = self._journals.delays(changed)
        self._print(texts.changes_text(chapter.changes, percentiles(delays)), style="dim")

    def _send_control(self, chapter: Chapter) -> None:
        """Send the chapter's control and wait until every trainer has applied it."""
        control = chapter.control
        self._oracle.control(control)
        sent_at = system_clock()
        message = (control_key(control), write_control(control, self._catalog))
        send(self._producer, topic_name(self._settings.namespace, CONTROLS), [message])
        applied = self._journals.await_control(control.event_id, timeout_seconds=_PATIENCE_SECONDS)
        self._events += 1
        if len(applied) < len(TRAINERS):
            self.findings.notes.append(f"not every trainer obeyed: {chapter.title}")
            self.findings.wrong_reason += 1
        delays_ms = {name: (at - sent_at) / 1000 for name, at in applied.items()}
        self._pauses_ms += delays_ms.values()
        for line in texts.chapter_text(chapter, delays_ms):
            self._print(line, markup=True)

    def _stored_rows(self) -> int:
        rows = 0
        for path in self._paths.values():
            for file in path.glob("*.parquet"):
                rows += pq.read_metadata(file).num_rows
        return rows

    def _await_orders(self) -> None:
        """Wait until no purge order is open: whoever moves in afterwards must not be purged too."""
        until = monotonic() + _PATIENCE_SECONDS
        sleep(0.3)
        while any(
            self._processes.ask(trainer, "/readyz").get("purge_orders_open", 1)
            for trainer in TRAINERS
        ):
            if monotonic() > until:
                raise Unavailable(
                    "A purge order was not settled in time.",
                    code="demo.slow",
                    fix="read the trainers' logs",
                )
            sleep(0.1)

    def _send(self, events: Sequence[ChangeEvent], *, paced: bool = False) -> None:
        """Send events in order; paced ones at EVENTS_PER_SECOND, timed from when each was due."""
        topic = topic_name(self._settings.namespace, MEMBER_EVENTS)
        started = system_clock()
        failed: list[Any] = []

        def note_failure(error: Any, _message: Any) -> None:
            if error:
                failed.append(error)

        for number, event in enumerate(events):
            self._oracle.send([event])
            value = write_event(event, self._catalog)
            if paced:
                due = started + number * 1_000_000 // EVENTS_PER_SECOND
                if (ahead := due - system_clock()) > 0:
                    self._producer.poll(0)
                    sleep(ahead / 1e6)
                self._sent.append((event.member, self._oracle.version(event.member), due))
            while True:
                try:
                    self._producer.produce(topic, value, event.member, on_delivery=note_failure)
                    break
                except BufferError:
                    self._producer.poll(0.05)
        left = self._producer.flush(_PATIENCE_SECONDS)
        if left or failed:
            raise Unavailable(
                f"{left or len(failed)} events were not acknowledged.",
                code="demo.producer",
                fix="run it again",
            )
        self._events += len(events)

    def _await_everything(self) -> None:
        self._await_versions(self._sent)
        for child in self._processes.children:
            self._processes.await_ready(child.name, timeout_seconds=_PATIENCE_SECONDS)
        self._await_orders()

    def _await_versions(self, sent: Sequence[tuple[str, int, int]]) -> None:
        """Wait until every trainer has what was sent; what never comes is counted later."""
        last: dict[str, int] = {}
        for member, version, _ in sent:
            last[member] = max(version, last.get(member, 0))
        for member, version in last.items():
            if not self._journals.await_version(member, version, timeout_seconds=_PATIENCE_SECONDS):
                return

    def _check(self, before: dict[str, pa.Table]) -> None:
        """Let every trainer decide its whole data set, and compare all of it with the rules."""
        self._print(f"\n{texts.CHECKING}")
        for trainer in TRAINERS:
            self._read_epoch(trainer)
        now = system_clock()
        for trainer in TRAINERS:
            check_dataset(
                self._oracle,
                before[trainer],
                self._paths[trainer],
                self._manifest(trainer),
                now,
                self.findings,
            )
        followers = self._follower_addresses()
        with open_table(self._settings, self._partitions) as table:
            check_table(
                self._oracle,
                table,
                self._partitions,
                self._catalog.frame_of("ConsentRecord"),
                followers,
                self.findings,
            )

    def _ask_about_the_past(self) -> None:
        """Ask what was right in Hong Kong on 12 October, and what was known of it then."""
        record = read_member(self._settings, self._quiet_member("HK"))
        controls = Controls(iso_jurisdictions()).after(*read_controls(self._settings))
        self._print(f"\n{texts.PAST_QUESTION}")
        for answer in texts.past_answers(record, controls):
            self._print(answer)

    def _quiet_member(self, home: str) -> str:
        """Return a member who lives there, and of whom nothing else is known."""
        return next(
            name
            for name, place in self._story.homes.items()
            if place == home and self._is_quiet(name)
        )

    def _is_quiet(self, member: str) -> bool:
        """Return True if only the residence of the member is known."""
        record = self._oracle.records.get(member)
        return record is not None and record.version == 1

    def _read_epoch(self, trainer: str) -> None:
        manifest = self._manifest(trainer)
        manifest.unlink(missing_ok=True)
        self._processes.send_signal(trainer, signal.SIGUSR1)
        until = monotonic() + _PATIENCE_SECONDS + len(self._story.members) / 2000
        while not manifest.exists():
            if monotonic() > until:
                raise Unavailable(
                    f"{trainer} did not read its data set in time.",
                    code="demo.slow",
                    fix="run it again",
                )
            sleep(0.05)
