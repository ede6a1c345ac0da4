"""Controls that come in parts, in one instant, or are asked about again: two systems must end up
alike.
"""

from __future__ import annotations

from tests.strategies import PURPOSE, WORLD, day, lift, pause, policy, terms

from consentry.domain.controls import ApplicableControls, Controls

NOTHING = Controls(WORLD)
LATER = {"at": day(50), "known_at": day(50)}


def applicable(controls: Controls, jurisdiction: str = "US") -> ApplicableControls:
    """What the controls say on day 50."""
    return controls.applicable(jurisdiction, PURPOSE, None, **LATER)


class TestParts:
    """A trainer follows the topic in batches, and one that starts anew reads it at once."""

    def test_a_control_that_is_known_does_not_hide_those_behind_it(self) -> None:
        """A batch that begins with an old message must not lose the regulator's new one."""
        known, imposed = policy(1, terms("*"), on=0), pause(2, "US", on=1)

        controls = NOTHING.after(known).after(known, imposed)

        assert controls.log == (known, imposed)
        assert applicable(controls).pause == imposed

    def test_the_later_policy_of_one_date_binds_in_whichever_batch_it_came(self) -> None:
        """A correction of the same day has to correct."""
        one, two, three = (policy(number, terms("*"), on=1) for number in (1, 2, 3))

        for controls in (NOTHING.after(one, two, three), NOTHING.after(one, two).after(three)):
            assert applicable(controls).policy == three

    def test_the_first_pause_of_the_log_is_told_in_whichever_batch_it_came(self) -> None:
        """A member who asks twice must be told the same order."""
        pauses = pause(1, "*", on=3, name="b"), pause(2, "US", on=2, name="a"), pause(3, "US", on=1)
        first, *rest = pauses

        for controls in (
            NOTHING.after(*pauses),
            NOTHING.after(first).after(*rest),
            NOTHING.after(first, rest[0]),
        ):
            assert applicable(controls).pause == first

    def test_what_is_added_leaves_the_controls_before_as_they_were(self) -> None:
        """They are a value: an answer that is being worked out must not change under the worker's
        hands.
        """
        before = NOTHING.after(policy(1, terms("US"), on=0))

        after = before.after(policy(2, terms("HK", "US"), on=0), pause(3, "US", on=1))

        assert (applicable(before).pause, applicable(before).policy) == (None, before.log[0])
        assert (applicable(after).pause, applicable(after).policy) == (after.log[2], after.log[1])
        assert applicable(before, "HK").policy is None


class TestOneInstant:
    def test_of_two_lifts_recorded_in_one_instant_the_last_of_the_log_is_told(self) -> None:
        """Both void the same opt-ins; every system has to name the same one."""
        first, second = lift(3, on=5, name="a"), lift(4, on=5, name="b")
        pauses = pause(1, "US", on=1, name="a"), pause(2, "*", on=1, name="b")

        for controls in (
            NOTHING.after(*pauses, first, second),
            NOTHING.after(*pauses, first).after(second),
        ):
            assert controls.last_voiding_lift("US", PURPOSE, **LATER) == second


class TestRemembering:
    controls = NOTHING.after(
        policy(1, terms("*"), on=0),
        pause(2, "US", on=7, effective_at=day(5), categories=("posts",)),
    )

    def test_what_was_asked_before_is_not_worked_out_again(self) -> None:
        """A batch of rows asks the same few questions a million times."""
        assert applicable(self.controls) is applicable(self.controls)

    def test_another_place_purpose_category_or_time_is_another_question(self) -> None:
        """An answer that is remembered for too much is somebody else's."""
        paused = self.controls.log[1]

        def pausing(
            place: str = "US",
            purpose: str = PURPOSE,
            category: str | None = "posts",
            at: float = 5,
            known: float = 7,
        ) -> object:
            return self.controls.applicable(
                place, purpose, category, at=day(at), known_at=day(known)
            ).pause

        assert [pausing(), pausing(category=None), pausing(at=6), pausing(known=8)] == [paused] * 4
        assert pausing("HK") is None
        assert pausing(purpose="ads") is None
        assert pausing(category="profile") is None
        assert pausing(at=4.99999) is None
        assert pausing(known=6.99999) is None
