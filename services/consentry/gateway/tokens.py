"""The consistency tokens that the gateway gives out for what it accepted."""

from __future__ import annotations

from collections.abc import Mapping

from consentry.gateway.context import GatewayContext
from consentry.kafka.sender import TopicPosition
from consentry.wire.tokens import Token, write_token


def event_token(context: GatewayContext, position: TopicPosition) -> str:
    """Return the consistency token of one member event that the gateway accepted.

    It also asks for the controls that were known when the event was accepted.
    """
    return token_of(context, {position.partition: position.offset + 1})


def control_token(context: GatewayContext, position: TopicPosition | None) -> str:
    """Return the consistency token of one control that the gateway accepted.

    None stands for a control that is known here already.
    """
    return token_of(context, {}, controls=0 if position is None else position.offset + 1)


def token_of(context: GatewayContext, offsets: Mapping[int, int], *, controls: int = 0) -> str:
    """Return the gateway's consistency token over offsets by partition, and over controls.

    It asks for the controls known here, and at least for those before `controls`.
    """
    reader = context.reader
    known_controls = max(controls, reader.controls.position)
    token = Token(reader.log, offsets, known_controls, context.clock())
    return write_token(token, context.token_keys)
