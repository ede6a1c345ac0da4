"""`consentry gateway`: HTTP for producers and regulator desks, and questions about members."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import structlog
import typer
import uvicorn

from consentry.cli.connections import count_partitions, open_catalog
from consentry.cli.consent_table import open_table
from consentry.cli.health import start_health
from consentry.cli.settings import load_settings, load_token_keys
from consentry.gateway.access.oidc import OidcSettings
from consentry.gateway.access.setup import AccessSettings, open_authenticator
from consentry.gateway.app import build_gateway
from consentry.gateway.build import (
    GatewayPlan,
    liveness,
    open_context,
    readiness,
    require_token_keys,
)
from consentry.gateway.context import GatewayContext
from consentry.ops.clock import system_clock
from consentry.ops.collector import spare_the_collector
from consentry.ops.http.address import bind
from consentry.ops.http.head_limits import HeadLimits
from consentry.ops.logs import set_up_logs
from consentry.ops.settings import Settings
from consentry.wire.tokens import TokenKeys

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
    authenticator = open_authenticator(
        access_settings(settings), bind_host=settings.gateway_host, profile=settings.profile
    )
    token_keys = load_token_keys(settings)
    require_token_keys(token_keys, profile=settings.profile)
    plan = _plan(settings, token_keys)
    with open_table(settings, plan.partitions) as table:
        async with open_context(plan, table, authenticator, system_clock) as context:
            await _serve_http(settings, context)


def _plan(settings: Settings, token_keys: TokenKeys) -> GatewayPlan:
    """Return what the settings say of the gateway, with the topic's partitions and the schemas."""
    return GatewayPlan(
        kafka=settings.kafka(),
        namespace=settings.namespace,
        redis_url=settings.redis_url.get_secret_value(),
        partitions=count_partitions(settings),
        catalog=open_catalog(settings),
        token_keys=token_keys,
        bundle_store=settings.bundle_store,
        bundle_key_files=settings.bundle_public_keys(),
        rate_per_second=settings.gateway_rate,
        staleness_seconds=settings.staleness_seconds,
        subscribers=settings.declared_subscribers(),
        version=version("consentry"),
    )


async def _serve_http(settings: Settings, context: GatewayContext) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    listener = bind(
        settings.gateway_host,
        settings.gateway_port,
        backlog=2048,
        code="gateway.address",
        fix="set CONSENTRY_GATEWAY_PORT to a free port, or to 0 for one from the operating system",
    )
    try:
        health = start_health(
            settings,
            context.metrics,
            alive=partial(liveness, context),
            ready=partial(readiness, context),
        )
        spare_the_collector()
        url = f"http://{settings.gateway_host}:{listener.getsockname()[1]}"
        structlog.get_logger(__name__).info("gateway", url=url, metrics=health.address)
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
        # The server raises the signal that ended it once more, but what is open has to be closed
        # first.
        signal.signal(signal.SIGTERM, lambda *_: None)
        await uvicorn.Server(config).serve(sockets=[listener])
        health.stop()
    finally:
        listener.close()


def access_settings(settings: Settings) -> AccessSettings:
    """Return the settings of `consentry gateway` that say who is let in."""
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
