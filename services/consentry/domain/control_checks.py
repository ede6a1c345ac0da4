"""The rules' checks of a control before it is sent: it would be taken, and miss its purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.wording import date_text


class ControlConflict(NamedTuple):
    """The reason why a pause, lift or policy would not do what it is meant to, by the rules.

    `field` is the control's field, `problem` a clause, `fix` the cure, and `code` is stable.
    """

    field: str
    problem: str
    fix: str
    code: str


def conflict_of_pause(
    pause: PauseImposed, log: Sequence[Control], *, has_effective: bool
) -> ControlConflict | None:
    """Return the conflict of a pause whose version was lifted, or imposed otherwise, or None.

    It would be accepted and change nothing.
    """
    for known in log:
        is_lifted = (
            isinstance(known, PauseLifted)
            and known.pause == pause.pause
            and known.version >= pause.version
        )
        is_other = False
        if isinstance(known, PauseImposed) and (known.pause, known.version) == (
            pause.pause,
            pause.version,
        ):
            is_moved = has_effective and pause.effective_at != known.effective_at
            is_other = is_moved or (known.scope, known.reach) != (pause.scope, pause.reach)
        if is_lifted or is_other:
            act = "lifted"
            if not is_lifted:
                act = "imposed otherwise"
            return ControlConflict(
                "version",
                f"version {pause.version} of pause {pause.pause!r} was {act} already: repeating it "
                "changes nothing",
                "give it a higher version",
                "input.pause_version",
            )
    return None


def conflict_of_lift(
    lift: PauseLifted, log: Sequence[Control], *, has_effective: bool
) -> ControlConflict | None:
    """Return the conflict of a lift that changes nothing or too much by the rules, or None.

    A lift of a pause that was never imposed changes nothing; one from before the pause would undo
    that it ever held. A lift of a version beyond the highest would end, unseen, the next pause that
    an authority imposes: a lift that comes first still lifts.
    """
    named = [
        known for known in log if isinstance(known, PauseImposed) and known.pause == lift.pause
    ]
    ended = [known for known in named if known.version <= lift.version]
    if not ended:
        field = "version"
        if not named:
            field = "pause"
        return ControlConflict(
            field,
            f"no pause {lift.pause!r} with a version up to {lift.version} was ever imposed",
            "name the pause as it was imposed; `consentry pause list` shows them",
            "input.pause_unknown",
        )
    highest = max(known.version for known in named)
    if lift.version > highest:
        return ControlConflict(
            "version",
            f"the lift ends versions up to {lift.version} of pause {lift.pause!r}, of which "
            f"version {highest} is the "
            "last: it would end what nobody has seen yet",
            f"give it the version {highest}",
            "input.pause_version",
        )
    start = max(known.effective_at for known in ended)
    if has_effective and lift.effective_at < start:
        return ControlConflict(
            "effective",
            f"the lift takes effect on {date_text(lift.effective_at)}, before the pause does on "
            f"{date_text(start)}",
            "give a time from then on; to withdraw a pause that was only announced, leave it out",
            "input.dates_inverted",
        )
    return None


def conflict_of_policy(
    policy: PolicyPublished, log: Sequence[Control], *, has_effective: bool
) -> ControlConflict | None:
    """Return the conflict of a policy version published before with other content, or None.

    A record that names the version would not say which of the two it means.
    """
    for known in log:
        if isinstance(known, PolicyPublished) and known.version == policy.version:
            is_moved = has_effective and known.effective_at != policy.effective_at
            other = "other terms"
            if known.terms == policy.terms:
                if not is_moved:
                    return None
                other = "another effective time"
            return ControlConflict(
                "version",
                f"the policy version {policy.version!r} was published before with {other}: a "
                "record that names it "
                "would not say which",
                "give the new terms a version of their own",
                "input.policy_version",
            )
    return None


def is_published(policy: PolicyPublished, log: Sequence[Control], *, has_effective: bool) -> bool:
    """Return True if this very policy was published before: again would change nothing."""
    is_known = any(
        isinstance(known, PolicyPublished) and known.version == policy.version for known in log
    )
    return is_known and conflict_of_policy(policy, log, has_effective=has_effective) is None
