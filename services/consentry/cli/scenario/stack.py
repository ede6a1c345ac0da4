"""Scenarios played by the command on the real stack, each in its own namespace.

The stack is broker, processor, table and trainer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import redis
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from consentry.cli.connections import open_catalog, open_registry, read_controls
from consentry.cli.consent_table import read_member
from consentry.cli.process_group import ProcessGroup
from consentry.domain.controls import Controls
from consentry.domain.decisions import Decision, decide
from consentry.domain.errors import Refused, Unavailable
from consentry.domain.events import EventUnreadable
from consentry.domain.explain import date_text
from consentry.domain.orders import PurgeOrder
from consentry.domain.scenarios import (
    Expectation,
    Failure,
    Scenario,
    failed_answers,
    failed_orders,
    history,
)
from consentry.domain.values import Micros, Reason
from consentry.kafka.clients import client_config, producer_config, read_all, send
from consentry.kafka.topics import apply_topics, plan_topics
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.trainer.client import Client
from consentry.wire.catalog import Catalog, register_all
from consentry.wire.controls import control_key, write_control
from consentry.wire.events import write_event
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.purge_orders import read_order
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, PURGE_ORDERS, topic_name, topics

PROFILE = "rehearsal"
SUBSCRIBER = "scenario"
_PATIENCE_SECONDS = 90.0
_STALENESS_SECONDS = 15.0
_UNREADABLE = b"\xff this is no event"
_OPEN = re.compile(
    rf'^consentry_purge_orders_open{{subscriber="{SUBSCRIBER}"}} (\S+)$', re.MULTILINE
)


def play_alone(
    scenario: Scenario, *, settings: Settings, work: Path, number: int, cleans_up: bool
) -> tuple[Failure, ...]:
    """Play a scenario on the real stack, in a namespace and directory of its own.

    They are named by its number. `cleans_up` removes its topics and table afterwards, as on a stack
    that goes on running. Raises as `play`.
    """
    own_settings = settings.model_copy(update={"namespace": f"{settings.namespace}-{number}"})
    directory = work / str(number)
    directory.mkdir()
    try:
        failures = play(scenario, own_settings, directory)
    except BaseException:
        if cleans_up:
            with suppress(Unavailable):  # the first error is the one to report
                clean_up(own_settings)
        raise
    if cleans_up:
        clean_up(own_settings)
    return failures


def play(scenario: Scenario, settings: Settings, directory: Path) -> tuple[Failure, ...]:
    """Send a scenario's events to the real stack; ask trainer and table what is expected.

    The trainer is asked about the timeline's end, the table about the past. `settings` name the
    stack; their namespace is the scenario's own. Its topics take the sender's time, so that the
    story plays when it happened. Raises Refused or Unavailable.
    """
    _check_is_past(scenario)
    settings = settings.model_copy(update={"profile": PROFILE})
    kafka, namespace = settings.kafka(), settings.namespace
    register_all(open_registry(settings), namespace)
    list(
        apply_topics(
            kafka, plan_topics(kafka, namespace=namespace, profile=PROFILE), profile=PROFILE
        )
    )
    catalog = open_catalog(settings)
    processes = ProcessGroup(directory, _environment(settings), lambda _line: None)
    try:
        # All of it is in the log before the processor starts: it reads every control before the
        # first event.
        _send(scenario, settings, catalog)
        processes.add("processor", ["processor"], CONSENTRY_WORKER_ID=namespace)
        client = Client(
            kafka,
            catalog,
            name=SUBSCRIBER,
            namespace=namespace,
            staleness_seconds=_STALENESS_SECONDS,
        )
        client.start()
        try:
            client.wait_until_ready(_PATIENCE_SECONDS)
            decisions = [
                _answer(question, scenario.end, settings, client) for question in scenario.expect
            ]
        finally:
            client.stop()
        orders: Sequence[PurgeOrder] = []
        if scenario.expect_orders is not None:
            orders = _open_orders(settings, catalog, processes)
    finally:
        processes.stop()
    return (*failed_answers(scenario, decisions), *failed_orders(scenario, orders))


def _check_is_past(scenario: Scenario) -> None:
    if scenario.end > system_clock():
        raise Refused(
            f"The scenario {scenario.name!r} ends on {date_text(scenario.end)}; no broker takes "
            "what is still to come.",
            code="scenario.future",
            fix="run it with --engine rules",
        )


def clean_up(settings: Settings) -> None:
    """Remove a scenario's topics, groups and table from a stack that it only used.

    Raises Unavailable.
    """
    names = [topic_name(settings.namespace, topic) for topic in topics()]
    admin = AdminClient(client_config(settings.kafka(), "consentry-scenario"))
    try:
        for answer in admin.delete_topics(names, request_timeout=15).values():
            answer.result()
        groups = [f"{settings.namespace}-processor", f"{settings.namespace}-ledger"]
        for gone in admin.delete_consumer_groups(groups, request_timeout=15).values():
            with suppress(KafkaException):
                gone.result()  # one that never came to be, or whose last member is just leaving
    except KafkaException as error:
        raise Unavailable(
            f"The topics of {settings.namespace} could not be deleted: {error.args[0]}.",
            code="kafka.unavailable",
            fix=f"delete the topics whose names begin with {settings.namespace}. yourself",
        ) from error
    table = redis.Redis.from_url(settings.redis_url.get_secret_value())
    try:
        for key in table.scan_iter(match=f"{settings.namespace}:*", count=1000):
            table.delete(key)
    finally:
        table.close()


def _environment(settings: Settings) -> dict[str, str]:
    environment = {
        "CONSENTRY_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "CONSENTRY_KAFKA_SECURITY_PROTOCOL": settings.kafka_security_protocol,
        "CONSENTRY_KAFKA_SASL_MECHANISM": settings.kafka_sasl_mechanism,
        "CONSENTRY_KAFKA_SASL_USERNAME": settings.kafka_sasl_username,
        "CONSENTRY_KAFKA_SASL_PASSWORD": settings.kafka_sasl_password.get_secret_value(),
        "CONSENTRY_REDIS_URL": settings.redis_url.get_secret_value(),
        "CONSENTRY_REGISTRY_URL": settings.registry_url,
        "CONSENTRY_REGISTRY_CREDENTIALS": settings.registry_credentials.get_secret_value(),
        "CONSENTRY_PROFILE": settings.profile,
        "CONSENTRY_NAMESPACE": settings.namespace,
        "CONSENTRY_SUBSCRIBERS": f"{SUBSCRIBER}=rows",
        "CONSENTRY_TABLE_MEMBERS": "1000",
    }
    if settings.kafka_ca_file:
        environment["CONSENTRY_KAFKA_CA_FILE"] = str(settings.kafka_ca_file)
    return environment


def _send(scenario: Scenario, settings: Settings, catalog: Catalog) -> None:
    """Send controls and events in the log's order, at the times at which they were recorded."""
    producer = Producer(producer_config(settings.kafka(), "consentry-scenario"))
    controls = [
        (control_key(control), write_control(control, catalog), _milliseconds(control.recorded_at))
        for control in scenario.controls
    ]
    events = []
    for event in history(scenario, iso_jurisdictions()).events:
        sent_at = _milliseconds(event.recorded_at)
        if isinstance(event, EventUnreadable):
            value = _UNREADABLE
            # The broker's times are whole milliseconds, and a quarantine is recorded at the end of
            # its own.
            sent_at -= 1
        else:
            value = write_event(event, catalog)
        events.append((event.member.encode(), value, sent_at))
    send(producer, topic_name(settings.namespace, CONTROLS), controls)
    send(producer, topic_name(settings.namespace, MEMBER_EVENTS), events)


def _milliseconds(instant: Micros) -> int:
    return instant // 1000


def _answer(question: Expectation, end: Micros, settings: Settings, client: Client) -> Decision:
    if (question.at, question.known_at) == (end, end):
        return _at_the_trainer(question, client)
    # The past is asked as `consentry explain` asks it.
    record = read_member(settings, question.member)
    controls = Controls(iso_jurisdictions()).after(*read_controls(settings))
    return decide(
        record,
        question.row,
        controls,
        purpose=question.purpose,
        at=question.at,
        known_at=question.known_at,
    )


def _at_the_trainer(question: Expectation, client: Client) -> Decision:
    """Return the subscribed trainer's answer; a busy machine may make it STALE for a moment."""
    until = monotonic() + _PATIENCE_SECONDS
    while True:
        decision = client.decide(
            question.member,
            purpose=question.purpose,
            row=question.row,
            at=question.at,
            known_at=question.known_at,
        )
        if (
            decision.reason is not Reason.STALE
            or question.reason is Reason.STALE
            or monotonic() > until
        ):
            return decision
        sleep(0.1)


def _open_orders(
    settings: Settings, catalog: Catalog, processes: ProcessGroup
) -> Sequence[PurgeOrder]:
    """Return the open orders in the log, once the ledger has read every control."""
    until = monotonic() + _PATIENCE_SECONDS
    while not _OPEN.search(processes.metrics("processor")):
        if monotonic() > until:
            raise Unavailable(
                f"The ledger of {settings.namespace} did not come up in {_PATIENCE_SECONDS:.0f} s.",
                code="scenario.ledger",
                fix="run the scenario again, with --jobs 1 on a busy machine",
            )
        sleep(0.1)
    messages = read_all(settings.kafka(), topic_name(settings.namespace, PURGE_ORDERS))
    return _unsettled(read_order(message.value, catalog) for message in messages)


def _unsettled(orders: Iterable[PurgeOrder]) -> list[PurgeOrder]:
    last = {order.order_id: order for order in orders}
    return [order for order in last.values() if not order.is_settled]
