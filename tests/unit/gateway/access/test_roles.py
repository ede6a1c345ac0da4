"""Who may do what, against a table written by hand: a change of one has to be a change of both."""

from __future__ import annotations

import pytest

from consentry.gateway.access import (
    PERMISSIONS,
    Forbidden,
    Permission,
    Principal,
    Role,
    require,
    require_purpose,
    require_subscriber,
)

TABLE = """
                 producer trainer desk approver auditor
emit             yes      no      no   no       no
impose           no       no      yes  no       no
propose          no       no      yes  no       no
approve          no       no      no   yes      no
ask              yes      yes     yes  no       yes
explain          no       no      yes  no       yes
read_controls    yes      yes     yes  yes      yes
read_status      yes      yes     yes  yes      yes
read_quarantine  no       no      yes  yes      yes
read_approvals   no       no      yes  yes      yes
read_bundles     no       yes     no   no       yes
"""
ROLES = TABLE.split("\n")[1].split()
CELLS = [
    (role, line.split()[0], answer == "yes")
    for line in TABLE.strip("\n").split("\n")[1:]
    for role, answer in zip(ROLES, line.split()[1:], strict=True)
]


def who(
    *roles: Role, purposes: frozenset[str] | None = None, subscriber: str | None = None
) -> Principal:
    """A caller with these roles."""
    return Principal(
        subject="ada",
        roles=frozenset(roles),
        credential="dev",
        purposes=purposes,
        subscriber=subscriber,
    )


def test_the_table_names_every_role_and_every_permission() -> None:
    """A role or permission that the table forgets would be nobody's decision."""
    assert {(role, permission) for role, permission, _ in CELLS} == {
        (r, p) for r in Role for p in Permission
    }
    assert set(PERMISSIONS) == set(Role)


@pytest.mark.parametrize(("role", "permission", "expected"), CELLS)
def test_a_role_may_do_what_the_table_says_and_nothing_else(
    role: str, permission: str, expected: bool
) -> None:
    """A trainer who could lift a pause, or a producer who could read who opted out of what, hurts
    every member.
    """
    principal, wanted = who(Role(role)), Permission(permission)

    assert principal.may(wanted) is expected
    if expected:
        require(principal, wanted)
    else:
        with pytest.raises(Forbidden):
            require(principal, wanted)


@pytest.mark.parametrize("permission", Permission)
def test_a_caller_without_a_role_may_do_nothing(permission: Permission) -> None:
    """The identity provider knows many people who are none of ours."""
    with pytest.raises(Forbidden):
        require(who(), permission)


def test_two_roles_add_up() -> None:
    """A small company has one person at the desk who also approves, though never their own
    proposal.
    """
    both = who(Role.DESK, Role.APPROVER)

    assert both.may(Permission.PROPOSE)
    assert both.may(Permission.APPROVE)
    assert not both.may(Permission.EMIT)


def test_a_trainer_asks_only_about_its_own_purposes() -> None:
    """One trainer's stolen key must not read the choices of members for every other purpose."""
    trainer = who(Role.TRAINER, purposes=frozenset({"ads"}))

    require_purpose(trainer, "ads")
    with pytest.raises(Forbidden):
        require_purpose(trainer, "genai_training")


def test_a_trainer_without_purposes_asks_about_none() -> None:
    """A claim that got lost must narrow, never widen."""
    with pytest.raises(Forbidden):
        require_purpose(who(Role.TRAINER, purposes=frozenset()), "ads")


def test_a_trainer_of_some_purposes_reads_no_bundle() -> None:
    """A bundle holds everybody's choices for every purpose: a stolen key would read far more than
    it may ask.
    """
    assert who(Role.TRAINER).may_read_bundles()
    assert not who(Role.TRAINER, purposes=frozenset({"ads"})).may_read_bundles()
    assert not who(Role.TRAINER, purposes=frozenset()).may_read_bundles()
    assert not who(Role.DESK, Role.PRODUCER, Role.APPROVER).may_read_bundles()
    assert who(Role.TRAINER, Role.AUDITOR, purposes=frozenset()).may_read_bundles()


def test_a_wider_role_is_not_narrowed_by_being_a_trainer_too() -> None:
    """Auditors see everything, whatever else they are."""
    require_purpose(who(Role.TRAINER, Role.AUDITOR, purposes=frozenset()), "ads")
    require_subscriber(who(Role.TRAINER, Role.AUDITOR), "ranker")


def test_an_approver_does_not_ask_about_members() -> None:
    """Approving needs no member's choices, so no approver sees them."""
    with pytest.raises(Forbidden):
        require_purpose(who(Role.APPROVER), "ads")


def test_a_trainer_sees_only_its_own_subscriber() -> None:
    """What another trainer owes is none of its business."""
    require_subscriber(who(Role.TRAINER, subscriber="ranker"), "ranker")
    for stranger in (who(Role.TRAINER, subscriber="ranker"), who(Role.TRAINER)):
        with pytest.raises(Forbidden):
            require_subscriber(stranger, "writer")


def test_a_refusal_does_not_repeat_what_was_asked_about() -> None:
    """Error texts end in logs of others."""
    with pytest.raises(Forbidden) as caught:
        require_purpose(who(Role.TRAINER, purposes=frozenset()), "secret_project")

    assert "secret_project" not in str(caught.value)
    assert caught.value.code == "auth.forbidden"
