"""What every store of Idempotency-Keys and of proposals promises, whatever it is made of.

Plug in a `store` fixture.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Final

from consentry.domain.values import DAY_MICROS, Micros
from consentry.gateway.idempotency import Attempt, IdempotencyStore, with_answer
from consentry.gateway.proposals import (
    LISTED_MAX,
    Proposal,
    ProposalRequest,
    ProposalStore,
    new_proposal,
)

NOW: Final = Micros(1_700_000_000_000_000)
KEY: Final = "ab" * 20


def attempt(number: int = 1) -> Attempt:
    """The first use of a key."""
    return Attempt(f"{number:040x}", f"{number:032x}", NOW, Micros(NOW + 45_000_000))


def proposal(number: int = 1, *, now: Micros = NOW) -> Proposal:
    """A lift that waits for a second person."""
    form = {"pause": f"hk-{number}", "opt_ins": "VOID"}
    return new_proposal(
        ProposalRequest("lift", form, ["ends the pause"]),
        proposal_id=secrets.token_hex(16),
        by="anna@desk",
        now=now,
    )


class IdempotencyStoreContract:
    """Every test takes `store`, empty and its own. Each runs in one event loop, as a gateway
    does.
    """

    def test_the_first_claim_of_a_key_is_told_that_it_is_the_first(
        self, store: IdempotencyStore
    ) -> None:
        """A first request taken for a repetition would never be sent: an opt-out lost."""

        async def story() -> None:
            assert await store.claim(KEY, attempt()) is None

        asyncio.run(story())

    def test_a_second_claim_gets_the_first_attempt_whole(self, store: IdempotencyStore) -> None:
        """With another id or time a repetition would be a second event, or one id with two
        contents: a quarantine.
        """

        async def story() -> None:
            await store.claim(KEY, attempt(1))

            assert await store.claim(KEY, attempt(2)) == attempt(1)
            assert await store.claim(KEY, attempt(3)) == attempt(1)

        asyncio.run(story())

    def test_of_many_claims_at_once_one_is_first(self, store: IdempotencyStore) -> None:
        """A producer whose client retries on two connections would make two events of one."""

        async def story() -> None:
            found = await asyncio.gather(
                *(store.claim(KEY, attempt(number)) for number in range(20))
            )

            assert found.count(None) == 1
            first = attempt(found.index(None))
            assert all(one in (None, first) for one in found)

        asyncio.run(story())

    def test_keys_do_not_meet(self, store: IdempotencyStore) -> None:
        """One caller's request would be answered with another one's event."""

        async def story() -> None:
            await store.claim(KEY, attempt(1))

            assert await store.claim("cd" * 20, attempt(2)) is None

        asyncio.run(story())

    def test_a_finished_attempt_comes_back_with_its_answer(self, store: IdempotencyStore) -> None:
        """The repetition is answered from it, token and all: a lost field would be a token that
        asks for too little.
        """

        async def story() -> None:
            done = with_answer(
                attempt(),
                {"token": "t", "offset": 3, "warnings": ["é"], "deep": {"a": [None, True]}},
            )
            await store.claim(KEY, attempt())
            await store.finish(KEY, done)

            assert await store.claim(KEY, attempt(2)) == done

        asyncio.run(story())

    def test_a_forgotten_key_can_be_used_anew(self, store: IdempotencyStore) -> None:
        """After a refusal nothing was sent: the corrected request has to be taken."""

        async def story() -> None:
            await store.claim(KEY, attempt(1))
            await store.forget(KEY)
            await store.forget(KEY)

            assert await store.claim(KEY, attempt(2)) is None

        asyncio.run(story())


class ProposalStoreContract:
    """Every test takes `store`, empty and its own. Each runs in one event loop, as a gateway
    does.
    """

    def test_a_proposal_comes_back_as_it_was_put(self, store: ProposalStore) -> None:
        """The second person approves what stands there: any difference is something nobody
        proposed.
        """

        async def story() -> None:
            one = replace(
                proposal(),
                state="approving",
                decided_by="eva",
                decided_at=Micros(NOW + 1),
                result={"offset": 3},
            )
            await store.put(one)

            assert await store.get(one.proposal_id) == one

        asyncio.run(story())

    def test_putting_it_again_replaces_it(self, store: ProposalStore) -> None:
        """A rejected proposal that came back open could be approved."""

        async def story() -> None:
            one = proposal()
            await store.put(one)
            await store.put(replace(one, state="rejected"))

            found = await store.get(one.proposal_id)
            assert found is not None
            assert found.state == "rejected"
            assert len(await store.newest()) == 1

        asyncio.run(story())

    def test_an_unknown_proposal_is_none(self, store: ProposalStore) -> None:
        """A guessed id must approve nothing."""

        async def story() -> None:
            assert await store.get("00" * 16) is None
            assert await store.newest() == []

        asyncio.run(story())

    def test_the_newest_come_first_and_are_bounded(self, store: ProposalStore) -> None:
        """The desk works through the list; without a bound one caller could make it unreadable."""

        async def story() -> None:
            all_of_them = [
                proposal(number, now=Micros(NOW + number)) for number in range(LISTED_MAX + 5)
            ]
            for one in all_of_them:
                await store.put(one)

            assert await store.newest() == all_of_them[: -LISTED_MAX - 1 : -1]

        asyncio.run(story())

    def test_a_proposal_can_be_decided_by_one_at_a_time(self, store: ProposalStore) -> None:
        """Approved and rejected at once, it would take effect and be listed as rejected."""

        async def story() -> None:
            tickets = await asyncio.gather(*(store.lock("11" * 16) for _ in range(20)))

            taken = [ticket for ticket in tickets if ticket is not None]
            assert len(taken) == 1
            assert await store.lock("22" * 16) is not None
            await store.unlock("11" * 16, taken[0])
            assert await store.lock("11" * 16) is not None

        asyncio.run(story())

    def test_who_comes_too_late_does_not_take_away_the_lock_of_the_next(
        self, store: ProposalStore
    ) -> None:
        """A gateway that hung for longer than its lock lasts would let a third person in beside the
        second.
        """

        async def story() -> None:
            assert await store.lock("11" * 16) is not None
            await store.unlock("11" * 16, "the ticket of somebody before")

            assert await store.lock("11" * 16) is None

        asyncio.run(story())

    def test_the_list_ends_after_a_month(self, store: ProposalStore) -> None:
        """What was decided stands in the log; a list that only grows would end up holding the
        desk's whole history.
        """

        async def story() -> None:
            old, new = proposal(1), proposal(2, now=Micros(NOW + 31 * DAY_MICROS))
            await store.put(old)
            await store.put(new)

            assert await store.newest() == [new]

        asyncio.run(story())
