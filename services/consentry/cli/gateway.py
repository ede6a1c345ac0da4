"""`consentry gateway`: the HTTP door for producers, the regulator desk, and whoever asks for a
decision.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from consentry.bundles import PublicKeys
from consentry.bundles.downloads import DownloadStore
from consentry.cli.connections import count_partitions, load_settings, load_token_keys, open_catalog
from consentry.cli.consent_table import open_table
from consentry.domain.errors import UnsafeSetting
from consentry.gateway.access.oidc import OidcSettings
from consentry.gateway.access.setup import AccessSettings, open_authenticator
from consentry.gateway.app import build_gateway
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
from consentry.ops.clock import system_clock
from consentry.ops.collector import spare_the_collector
from consentry.ops.health import HealthServer
from consentry.ops.http.address import bind
from consentry.ops.http.head_limits import HeadLimits
from consentry.ops.logs import set_up_logs
from consentry.ops.metrics import Metrics
from consentry.ops.settings import Settings
from consentry.wire.schemas import MEMBER_EVENTS, topic_name

app = typer.Typer(add_completion=False)


@app.command()
def run(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: CONSENTRY_GATEWAY_HOST.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: one from the system; default: CONSENTRY_GATEWAY_PORT."
        ),
    ] = None,
    dev: Annotated[
        bool,
        typer.Option(
            "--dev", help="Let everybody in by name, on loopback only: `Bearer dev:anna:producer`."
        ),
    ] = False,
) -> None:
    """Run the HTTP gateway for producers, desks and trainers.

    It runs until SIGINT or SIGTERM, and refuses to start where nobody could get in, or everybody.
    """
    settings = load_settings(gateway_host=host, gateway_port=port, gateway_dev=dev or None)
    set_up_logs(style=settings.log_format, level=settings.log_level)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not on Windows
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings) -> None:
    log = structlog.get_logger(__name__)
    async with _open_context(settings) as context:
        listener = bind(
            settings.gateway_host,
            settings.gateway_port,
            backlog=2048,
            code="gateway.address",
            fix="set CONSENTRY_GATEWAY_PORT to a free port, or to 0 for one from the operating "
            "system",
        )
        try:
            health = _health(settings, context)
            spare_the_collector()
            address = f"{settings.gateway_host}:{listener.getsockname()[1]}"
            log.info("gateway", url=f"http://{address}", metrics=health.address)
            config = uvicorn.Config(
                build_gateway(context),
                http=HeadLimits,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=20,
                lifespan="off",
            )
            # The server raises the signal that ended it once more: what is open is to be closed
            # first.
            signal.signal(signal.SIGTERM, lambda *_: None)
            await uvicorn.Server(config).serve(sockets=[listener])
            health.stop()
        finally:
            listener.close()


@asynccontextmanager
async def _open_context(settings: Settings) -> AsyncIterator[GatewayContext]:
    """Everything behind the gateway, opened and closed again.

    Raises Refused, UnsafeSetting and Unavailable.
    """

    kafka, namespace = settings.kafka(), settings.namespace
    authenticator = open_authenticator(
        access_settings(settings), bind_host=settings.gateway_host, profile=settings.profile
    )
    keys = load_token_keys(settings)
    if not keys and settings.profile == "production":
        raise UnsafeSetting(
            "There are no token keys: whoever can write to Redis could put proposals there in "
            "anybody's name.",
            code="access.token_keys",
            fix="run `consentry keys init` with CONSENTRY_TOKEN_KEYS_FILE set, and give all "
            "gateways the same file",
        )
    partitions = count_partitions(settings)
    catalog = open_catalog(settings)
    log = log_identity(kafka, topic_name(namespace, MEMBER_EVENTS))
    metrics = Metrics(version("consentry"))
    controls = ControlsFollower(kafka, namespace=namespace, catalog=catalog, clock=system_clock)
    redis = Redis.from_url(
        settings.redis_url.get_secret_value(),
        protocol=3,
        socket_timeout=1.0,
        socket_connect_timeout=1.0,
        # One retry, for a connection that was closed meanwhile: the library's ten would keep every
        # caller waiting.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.01), 1),
    )
    sender = Sender(kafka, "consentry-gateway", has_thread=False)
    downloads = _downloads(settings)
    controls.start()
    try:
        controls.wait_until_read(30)
        submitter = Submitter(sender, catalog, namespace=namespace)
        metrics.gauge("consentry_gateway_messages_waiting").set_function(
            lambda: float(submitter.waiting)
        )
        with open_table(settings, partitions) as table:
            reader = TableReader(
                table,
                controls,
                partitions=partitions,
                log=log,
                staleness_seconds=settings.staleness_seconds,
                clock=system_clock,
            )
            metrics.gauge("consentry_gateway_controls_age_seconds").set_function(
                reader.controls_age_seconds
            )
            yield GatewayContext(
                authenticator=authenticator,
                submitter=submitter,
                reader=reader,
                idempotency=RedisIdempotency(redis, namespace=namespace),
                proposals=RedisProposals(redis, namespace=namespace, keys=keys),
                quarantine=QuarantinedMessages(
                    kafka, namespace=namespace, catalog=catalog, submitter=submitter
                ),
                rate=RateLimit(per_second=settings.gateway_rate, burst=settings.gateway_rate * 2),
                token_keys=keys,
                clock=system_clock,
                metrics=metrics,
                subscribers=settings.declared_subscribers(),
                bundles=downloads,
                version=version("consentry"),
            )
    finally:
        controls.stop()
        if downloads is not None:
            downloads.close()
        await asyncio.to_thread(sender.close)
        await redis.aclose()


def _downloads(settings: Settings) -> BundleDownloads | None:
    """The store of bundles that are handed out, where one is named. Raises Refused,
    InvalidInput.
    """
    if not settings.bundle_store:
        return None
    files = settings.bundle_public_keys()
    return BundleDownloads(
        DownloadStore(settings.bundle_store), believed=PublicKeys.read(*files) if files else None
    )


def access_settings(settings: Settings) -> Any:
    """What of the settings says who is let in."""
    oidc = None
    if settings.oidc_issuer or settings.oidc_audience or settings.oidc_jwks_url:
        oidc = OidcSettings(
            issuer=settings.oidc_issuer,
            audience=settings.oidc_audience,
            jwks_url=settings.oidc_jwks_url,
            algorithm=settings.oidc_algorithm,
            roles_claim=settings.oidc_roles_claim,
            purposes_claim=settings.oidc_purposes_claim,
            subscriber_claim=settings.oidc_subscriber_claim,
            ca_file=settings.oidc_ca_file,
        )
    return AccessSettings(
        keys_file=settings.access_keys_file,
        pepper_file=settings.access_pepper_file,
        oidc=oidc,
        dev=settings.gateway_dev,
    )


def _health(settings: Settings, context: GatewayContext) -> Any:
    controls = context.reader.controls

    def alive() -> dict[str, Any]:
        return {"ok": controls.is_alive, "controls": controls.is_alive}

    def ready() -> dict[str, Any]:
        # Events are taken also while the table is stale: an opt-out must not wait for that.
        detail = context.reader.stale_detail()
        return {
            "ok": controls.is_alive and not detail,
            "detail": detail,
            "messages_waiting": context.submitter.waiting,
        }

    health = HealthServer(
        context.metrics,
        alive=alive,
        ready=ready,
        host=settings.metrics_host,
        port=settings.metrics_port,
    )
    health.start()
    return health
