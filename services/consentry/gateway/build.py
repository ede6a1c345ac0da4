"""The gateway's context, opened from plain values and closed again; and the gateway's probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from consentry.bundles import PublicKeys
from consentry.bundles.downloads import DownloadStore
from consentry.domain.errors import UnsafeSetting
from consentry.gateway.access import Authenticator
from consentry.gateway.bundle_downloads import BundleDownloads
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.limits import RateLimit
from consentry.gateway.idempotency import RedisIdempotency
from consentry.gateway.kafka_submit import Submitter
from consentry.gateway.proposals import RedisProposals
from consentry.gateway.quarantine import QuarantinedMessages
from consentry.gateway.table_reader import TableReader
from consentry.kafka.clients import log_identity
from consentry.kafka.controls_follower import ControlsFollower
from consentry.kafka.sender import Sender
from consentry.ops.clock import Clock
from consentry.ops.metrics import Metrics
from consentry.table.protocol import ConsentTable
from consentry.wire.catalog import Catalog
from consentry.wire.schemas import MEMBER_EVENTS, topic_name
from consentry.wire.tokens import TokenKeys

CONTROLS_SECONDS_MAX: Final = 30.0
_REDIS_TIMEOUT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    """The values that a gateway is started with. `kafka` holds librdkafka's settings.

    `bundle_store` is a directory or URL, empty where no bundles are handed out. `subscribers` are
    pairs of subscriber and data set. `rate_per_second` is in events, for each caller.
    """

    kafka: Mapping[str, str]
    namespace: str
    redis_url: str
    partitions: int
    catalog: Catalog
    token_keys: TokenKeys
    bundle_store: str
    bundle_key_files: Sequence[Path]
    rate_per_second: float
    staleness_seconds: float
    subscribers: Sequence[tuple[str, str]]
    version: str


def require_token_keys(keys: TokenKeys, *, profile: str) -> None:
    """Check that a gateway in production has keys to sign proposals with.

    Raises UnsafeSetting.
    """
    if not keys and profile == "production":
        raise UnsafeSetting(
            "There are no token keys: whoever can write to Redis could put proposals there in "
            "anybody's name.",
            code="access.token_keys",
            fix="run `consentry keys init` with CONSENTRY_TOKEN_KEYS_FILE set, and give all "
            "gateways the same file",
        )


@asynccontextmanager
async def open_context(
    plan: GatewayPlan, table: ConsentTable, authenticator: Authenticator, clock: Clock
) -> AsyncIterator[GatewayContext]:
    """Open everything behind the gateway, and close it afterwards. The table stays open.

    Raises Refused, InvalidInput and Unavailable.
    """
    log = log_identity(plan.kafka, topic_name(plan.namespace, MEMBER_EVENTS))
    controls = ControlsFollower(
        plan.kafka, namespace=plan.namespace, catalog=plan.catalog, clock=clock
    )
    redis = _open_redis(plan.redis_url)
    sender = Sender(plan.kafka, "consentry-gateway", has_thread=False)
    downloads = _open_downloads(plan)
    controls.start()
    try:
        controls.wait_until_read(CONTROLS_SECONDS_MAX)
        reader = TableReader(
            table,
            controls,
            partitions=plan.partitions,
            log=log,
            staleness_seconds=plan.staleness_seconds,
            clock=clock,
        )
        submitter = Submitter(sender, plan.catalog, namespace=plan.namespace)
        yield GatewayContext(
            authenticator=authenticator,
            submitter=submitter,
            reader=reader,
            idempotency=RedisIdempotency(redis, namespace=plan.namespace),
            proposals=RedisProposals(redis, namespace=plan.namespace, keys=plan.token_keys),
            quarantine=QuarantinedMessages(
                plan.kafka, namespace=plan.namespace, catalog=plan.catalog, submitter=submitter
            ),
            rate=RateLimit(per_second=plan.rate_per_second, burst=plan.rate_per_second * 2),
            token_keys=plan.token_keys,
            clock=clock,
            metrics=_new_metrics(plan.version, submitter, reader),
            subscribers=plan.subscribers,
            bundles=downloads,
            version=plan.version,
        )
    finally:
        controls.stop()
        if downloads is not None:
            downloads.close()
        await asyncio.to_thread(sender.close)
        await redis.aclose()


def _open_redis(url: str) -> Redis:
    return Redis.from_url(
        url,
        protocol=3,
        socket_timeout=_REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
        # One retry, for a connection that was closed meanwhile. With the library's ten retries
        # every caller would wait.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.01), 1),
    )


def _open_downloads(plan: GatewayPlan) -> BundleDownloads | None:
    """Open the store of bundles that are handed out, where one is named."""
    if not plan.bundle_store:
        return None
    believed = PublicKeys.read(*plan.bundle_key_files) if plan.bundle_key_files else None
    return BundleDownloads(DownloadStore(plan.bundle_store), believed=believed)


def _new_metrics(version: str, submitter: Submitter, reader: TableReader) -> Metrics:
    metrics = Metrics(version)
    waiting = metrics.gauge("consentry_gateway_messages_waiting")
    waiting.set_function(lambda: float(submitter.waiting))
    age = metrics.gauge("consentry_gateway_controls_age_seconds")
    age.set_function(reader.controls_age_seconds)
    return metrics


def liveness(context: GatewayContext) -> dict[str, Any]:
    """Return the gateway's answer at /healthz: dead if it no longer follows the controls."""
    is_alive = context.reader.controls.is_alive
    return {"ok": is_alive, "controls": is_alive}


def readiness(context: GatewayContext) -> dict[str, Any]:
    """Return the gateway's answer at /readyz: it is ready while its controls are fresh.

    The table is not asked; GET /v1/status says whether it is fresh. Events are accepted also while
    this is not ready: an opt-out must not wait for it.
    """
    detail = context.reader.stale_detail()
    return {
        "ok": context.reader.controls.is_alive and not detail,
        "detail": detail,
        "messages_waiting": context.submitter.waiting,
    }
