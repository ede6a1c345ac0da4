"""Pauses, lifts and policies in requests to the gateway: checked, then sent as controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from consentry.domain.control_checks import (
    ControlConflict,
    conflict_of_lift,
    conflict_of_pause,
    conflict_of_policy,
    is_published,
)
from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.openings import Openings, openings
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.forms.controls import LiftDocument, PauseDocument, PolicyDocument
from consentry.gateway.accept import PreparedEvent
from consentry.gateway.context import GatewayContext
from consentry.gateway.http.models import Json
from consentry.gateway.idempotency import IdempotencyClaim
from consentry.gateway.proposals import ProposalKind, ProposalRequest
from consentry.ops.http.problems import Problem

_NO_ID: Final = bytes(16)
"""The identity of a control that is only looked at."""


@dataclass(frozen=True, slots=True)
class PauseDraft:
    """A pause that a request to the gateway asks to impose."""

    context: GatewayContext
    document: PauseDocument
    source: str
    event_id: ClassVar[None] = None
    excludes: ClassVar[bool] = True

    async def prepare(self, claim: IdempotencyClaim) -> PreparedEvent:
        """See Draft. Raises Problem 409 where the pause would not do what it is meant to."""
        pause = self._pause(claim.event_id, claim.recorded_at)
        if not _was_sent(self.context, claim):
            current = self._pause(_NO_ID, self.context.clock())
            has_effective = self.document.effective is not None
            log = self.context.reader.controls.controls.log
            _refuse(conflict_of_pause(current, log, has_effective=has_effective))
        if pause.effective_at <= pause.recorded_at:
            return PreparedEvent(pause)
        warning = f"the pause does not bind before {iso_text(pause.effective_at)}"
        return PreparedEvent(pause, [warning])

    def _pause(self, event_id: bytes, recorded_at: Micros) -> PauseImposed:
        return self.document.control(event_id=event_id, recorded_at=recorded_at, source=self.source)


@dataclass(frozen=True, slots=True)
class ControlDraft:
    """A lift or policy that a request to the gateway publishes, directly or after an approval.

    `form` has the plain values of `document`. Sent directly, it may open nothing.
    """

    context: GatewayContext
    kind: ProposalKind
    form: Json
    document: LiftDocument | PolicyDocument
    source: str
    opens_something: bool = True
    """True if it would widen use if it were sent now; and until `read_policy` has compared it."""
    event_id: ClassVar[None] = None
    excludes: ClassVar[bool] = False

    def control(self, event_id: bytes, recorded_at: Micros) -> PauseLifted | PolicyPublished:
        """Return the control with this identity, recorded at this time. Raises InvalidDocument."""
        return self.document.control(event_id=event_id, recorded_at=recorded_at, source=self.source)

    def control_now(self) -> PauseLifted | PolicyPublished:
        """Return the control as if it were sent now. Raises InvalidDocument."""
        return self.control(_NO_ID, self.context.clock())

    async def prepare(self, claim: IdempotencyClaim) -> PreparedEvent:
        """See Draft. Raises Problem 409 where it conflicts, or opens something after all.

        Claiming the key may have taken seconds: meanwhile somebody may have narrowed terms.
        """
        control = self.control(claim.event_id, claim.recorded_at)
        if _was_sent(self.context, claim):
            return PreparedEvent(control)
        await self.context.reader.wait_for_controls()
        self.check(control)
        # A repetition after a time-out keeps its first time: sent now, that is one in the past.
        now = self.context.clock()
        known = self.context.reader.controls.controls
        opens = openings(replace(control, recorded_at=now), known, now=now).words
        if opens:
            raise Problem(
                409,
                f"Controls have changed since this was sent: it would now widen use ({opens[0]}).",
                code="approval.changed",
                fix="send it again: it then waits for a second person",
            )
        return PreparedEvent(control)

    async def proposal(self) -> ProposalRequest:
        """See ProposalDraft. Raises Problem 409 where the control conflicts with others."""
        control = self.control_now()
        self.check(control)
        opens = openings_of(self.context, control, now=control.recorded_at)
        return ProposalRequest(self.kind, self.form, list(opens.words), opens.digest)

    def check(self, control: PauseLifted | PolicyPublished) -> None:
        """Raise Problem 409 where the control would not do what its sender means."""
        log = self.context.reader.controls.controls.log
        has_effective = self.document.effective is not None
        if isinstance(control, PauseLifted):
            _refuse(conflict_of_lift(control, log, has_effective=has_effective))
            return
        conflict = conflict_of_policy(control, log, has_effective=has_effective)
        is_known = is_published(control, log, has_effective=has_effective)
        _refuse(conflict)
        if is_known:
            raise Problem(
                409,
                f"The policy version {control.version!r} is published already, with the same "
                "terms.",
                code="input.policy_version",
                fix="nothing is to be done",
            )


def read_draft(
    context: GatewayContext, kind: ProposalKind, form: Any, *, source: str
) -> ControlDraft:
    """Return the draft of the lift or policy that a form at the gateway asks for.

    Raises InvalidDocument.
    """
    document: LiftDocument | PolicyDocument
    if kind == "lift":
        document = LiftDocument.read(form, name="the lift")
    else:
        document = PolicyDocument.read(form, name="the policy")
    draft = ControlDraft(context, kind, form, document, source)
    draft.control_now()  # a policy also refuses a notice that ends before it takes effect
    return draft


async def read_policy(context: GatewayContext, form: Any, *, source: str) -> ControlDraft:
    """Return the draft of a policy sent to the gateway, compared with all controls in the log.

    Raises InvalidDocument, and Unavailable where not all controls are known.
    """
    draft = read_draft(context, "policy", form, source=source)
    await context.reader.wait_for_controls()
    policy = draft.control_now()
    opens = openings(policy, context.reader.controls.controls, now=policy.recorded_at)
    return replace(draft, opens_something=bool(opens.words))


def openings_of(context: GatewayContext, control: Control, *, now: Micros) -> Openings:
    """Return what a control in a request to the gateway would open, if it were sent now.

    It is compared with the controls that are known.
    """
    known = context.reader.controls.controls
    return openings(control, known, now=now)


def _was_sent(context: GatewayContext, claim: IdempotencyClaim) -> bool:
    """Return whether the log has the control of a repeated request already.

    What it would be checked against then includes itself.
    """
    if not claim.is_repetition:
        return False
    log = context.reader.controls.controls.log
    return any(known.event_id == claim.event_id for known in log)


def _refuse(conflict: ControlConflict | None) -> None:
    """Raise Problem 409 for a conflict."""
    if conflict is not None:
        sentence = f"{conflict.problem[0].upper()}{conflict.problem[1:]}."
        raise Problem(409, sentence, code=conflict.code, fix=conflict.fix, field=conflict.field)
