"""Pauses, lifts and policies as documents that people write, each declared once.

The command line, the gateway and scenarios read them by these models, and describe them by these.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from consentry.domain.controls import (
    PURGE_WITHIN_DEFAULT,
    Minors,
    OptIns,
    PauseBasis,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Reach,
    Regime,
    Scope,
    Terms,
)
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.forms.document import Document, ListOf, as_validator, refuse
from consentry.forms.fields import (
    Categories,
    Duration,
    Instant,
    PauseName,
    PolicyVersion,
    Purpose,
    Purposes,
    ScopeEntries,
    Text,
    Version,
    one_of,
)
from consentry.forms.yaml import read_form

_EFFECTIVE = "When it begins to hold. Left out: when it was recorded."


class TermsBasis(enum.StrEnum):
    """The legal basis that terms name in a policy document that people write."""

    CONSENT = "CONSENT"
    LEGITIMATE_INTEREST = "LEGITIMATE_INTEREST"
    OTHER = "OTHER"


class WrittenDocument(Document):
    """A document that people write: null means the same as leaving a field out."""

    null_is_absent: ClassVar[bool] = True


class PauseDocument(WrittenDocument):
    """A pause as people write it: an authority, or the platform, stops a use for a scope."""

    pause: PauseName = Field(description="The name of the pause.")
    version: Version = Field(
        1,
        description="A repeated version changes nothing, a higher one imposes the pause again. "
        "Left out: 1.",
    )
    jurisdictions: ScopeEntries = Field(
        description="The jurisdictions it covers, with everything inside them."
    )
    purposes: Purposes | None = Field(None, description="The purposes it covers. Left out: all.")
    categories: Categories | None = Field(
        None,
        description="The kinds of data it covers; a row that names none is covered too. Left out: "
        "all.",
    )
    effective: Instant | None = Field(None, description=_EFFECTIVE)
    authority: Text = Field("", description="Who asked for it, such as PCPD. It decides nothing.")
    basis: Annotated[PauseBasis, one_of(PauseBasis.ORDER, PauseBasis.UNDERTAKING)] = Field(
        PauseBasis.UNDERTAKING,
        description="Whether it was ordered or promised. It decides nothing.",
    )
    reach: Annotated[Reach, one_of(Reach.GOING_FORWARD, Reach.PRIOR_AND_FUTURE)] = Field(
        Reach.GOING_FORWARD,
        description="PRIOR_AND_FUTURE also has stored training data purged.",
    )

    def control(self, *, event_id: bytes, recorded_at: Micros, source: str) -> PauseImposed:
        """Return the written pause, in effect from when it was recorded unless it says more."""
        return PauseImposed(
            event_id=event_id,
            pause=self.pause,
            version=self.version,
            scope=Scope(
                jurisdictions=self.jurisdictions,
                purposes=self.purposes,
                categories=self.categories,
            ),
            effective_at=recorded_at if self.effective is None else self.effective,
            recorded_at=recorded_at,
            authority=self.authority,
            basis=self.basis,
            reach=self.reach,
            source=source,
        )


class LiftTerms(WrittenDocument):
    """The end of a pause that is named elsewhere, as people write it. Opt-outs survive it."""

    version: Version = Field(
        1, description="The version it ends, with all lower ones. Left out: 1."
    )
    effective: Instant | None = Field(None, description=_EFFECTIVE)
    opt_ins: Annotated[OptIns, one_of(OptIns.VOID, OptIns.KEEP)] = Field(
        OptIns.VOID,
        description="VOID: only opt-ins recorded after the lift count, in the scope of the pause. "
        "KEEP: all count.",
    )


class LiftDocument(LiftTerms):
    """The end of a pause as people write it. Opt-outs survive it."""

    pause: PauseName = Field(description="The name of the pause that it ends.")

    def control(self, *, event_id: bytes, recorded_at: Micros, source: str) -> PauseLifted:
        """Return the written lift, in effect from when it was recorded unless it says more."""
        return PauseLifted(
            event_id=event_id,
            pause=self.pause,
            version=self.version,
            effective_at=recorded_at if self.effective is None else self.effective,
            recorded_at=recorded_at,
            opt_ins=self.opt_ins,
            source=source,
        )


class PurgeDuties(WrittenDocument):
    """Duties to delete, as people write them in the terms of a policy."""

    on_opt_out: bool = Field(
        default=False, description="Whether an opt-out opens a purge order too."
    )
    within: Duration = Field(
        default=PURGE_WITHIN_DEFAULT,
        description="The time allowed for a purge, from when its cause was recorded. Left out: 30 "
        "days.",
        json_schema_extra={"default": "P30D"},
    )


class TermsDocument(WrittenDocument):
    """The terms of a policy for some jurisdictions and one purpose, as people write them."""

    jurisdictions: ScopeEntries = Field(description="The jurisdictions these terms are for.")
    purpose: Purpose = Field(description="The purpose these terms are for.")
    regime: Annotated[Regime, one_of(Regime.NOT_OFFERED, Regime.OPT_IN, Regime.DEFAULT_ON)] = Field(
        description="The rule for members who have not chosen: used, not used, or not offered at "
        "all."
    )
    basis: Annotated[TermsBasis, one_of(*TermsBasis)] = Field(
        TermsBasis.OTHER,
        description="The legal basis. Explanations name it; it decides nothing.",
    )
    notice_until: Instant | None = Field(
        None, description="Until then only members who opted in are used. Left out: no notice."
    )
    categories: Categories | None = Field(
        None,
        description="The kinds of data inside the terms; a row of another kind is outside. Left "
        "out: all.",
    )
    collected_from: Instant | None = Field(
        None,
        description="Rows collected earlier, or at a time that is not known, are outside the "
        "terms. Left out: any time.",
    )
    minors: Annotated[Minors, one_of(Minors.EXCLUDE, Minors.EXCLUDE_UNLESS_ADULT, Minors.ALLOW)] = (
        Field(
            Minors.ALLOW,
            description="EXCLUDE leaves out known minors, EXCLUDE_UNLESS_ADULT all who are not "
            "known to be of age.",
        )
    )
    purge: PurgeDuties = Field(
        default_factory=PurgeDuties,
        description="Which data must be deleted, and how soon. Left out: after erasures and pauses "
        "that reach back, in 30 days.",
    )

    def terms(self) -> Terms:
        """Return the written terms as the rules read them."""
        return Terms(
            jurisdictions=self.jurisdictions,
            purpose=self.purpose,
            regime=self.regime,
            basis=self.basis.value,
            notice_until=self.notice_until,
            categories=self.categories,
            collected_from=self.collected_from,
            minors=self.minors,
            purge_on_opt_out=self.purge.on_opt_out,
            purge_within=self.purge.within,
        )


def _refuse_empty(value: Any) -> Any:
    if value == []:
        refuse("", value, "is empty", "give one entry per group of jurisdictions")
    return value


class PolicyDocument(WrittenDocument):
    """A policy as people write it: from its effective time on its terms bind.

    Also the whole of a policy file.
    """

    version: PolicyVersion = Field(
        description="The name of this version; published once. Quote it, or a date becomes a time "
        "and 1.10 becomes 1.1."
    )
    effective: Instant | None = Field(
        None,
        description="From then on it binds. Left out: when it was recorded. Among policies with a "
        "matching entry the latest binds.",
    )
    terms: Annotated[ListOf[TermsDocument], BeforeValidator(as_validator(_refuse_empty))] = Field(
        description="The first entry that matches jurisdiction and purpose holds.",
        json_schema_extra={"minItems": 1},
    )

    def control(
        self, *, event_id: bytes, recorded_at: Micros, source: str, path: str = ""
    ) -> PolicyPublished:
        """Return the written policy, in effect from when it was recorded unless it says more.

        `path` is the document's place in the text around it. Raises InvalidDocument for a notice
        that ends before the policy takes effect.
        """
        effective_at = recorded_at if self.effective is None else self.effective
        for index, entry in enumerate(self.terms):
            if entry.notice_until is not None and entry.notice_until < effective_at:
                field = f"terms[{index}].notice_until"
                if path:
                    field = f"{path}.{field}"
                refuse(
                    field,
                    iso_text(entry.notice_until),
                    "is before the policy takes effect",
                    "give a date after `effective`, or leave it out",
                )
        return PolicyPublished(
            event_id=event_id,
            version=self.version,
            terms=tuple(entry.terms() for entry in self.terms),
            effective_at=effective_at,
            recorded_at=recorded_at,
            source=source,
        )


def parse_pause(data: object, *, event_id: bytes, recorded_at: Micros, source: str) -> PauseImposed:
    """Return a pause from the plain values of a written document. Raises InvalidDocument."""
    document = PauseDocument.read(data, name="the pause")
    return document.control(event_id=event_id, recorded_at=recorded_at, source=source)


def parse_lift(data: object, *, event_id: bytes, recorded_at: Micros, source: str) -> PauseLifted:
    """Return a lift from the plain values of a written document. Raises InvalidDocument."""
    document = LiftDocument.read(data, name="the lift")
    return document.control(event_id=event_id, recorded_at=recorded_at, source=source)


def parse_policy(
    data: object, *, event_id: bytes, recorded_at: Micros, source: str
) -> PolicyPublished:
    """Return a policy from the plain values of a written document. Raises InvalidDocument."""
    document = PolicyDocument.read(data, name="the policy")
    return document.control(event_id=event_id, recorded_at=recorded_at, source=source)


def parse_policy_file(
    text: str, *, event_id: bytes, recorded_at: Micros, source: str, file: str = "the policy"
) -> PolicyPublished:
    """Return a policy from the YAML 1.2 text that people write.

    Raises InvalidInput naming file, line and field.
    """

    def parse(data: object) -> PolicyPublished:
        return parse_policy(data, event_id=event_id, recorded_at=recorded_at, source=source)

    return read_form(text, parse, source=file)
