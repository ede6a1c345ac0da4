"""The book of purge orders: what is owed, from messages in any order and any number of times."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import WORLD, day, lift, pause, policy, terms

from consentry.domain.controls import Controls, PauseImposed, Reach
from consentry.domain.orders import PurgeOrder, PurgeReason, Receipt, Result
from consentry.domain.values import MemberId
from consentry.ledger.book import Book

DECLARED = (("ranker", "posts"), ("writer", "articles"))


def new_book() -> Book:
    """A book with two subscribers who owe receipts."""
    return Book(Controls(WORLD), DECLARED)


def order(name: str = "erasure:1:m", *, due: float = 30) -> PurgeOrder:
    """An order for one member."""
    return PurgeOrder(
        order_id=name,
        because=PurgeReason.ERASURE,
        recorded_at=day(1),
        due_at=day(due),
        member=MemberId("m"),
    )


def receipt(
    pair: tuple[str, str], result: Result = Result.DELETED, *, order_id: str = "erasure:1:m"
) -> Receipt:
    """A subscriber's answer."""
    return Receipt(
        order_id=order_id,
        subscriber=pair[0],
        dataset=pair[1],
        result=result,
        rows_removed=1,
        version_before="a",
        version_after="b",
        completed_at=day(2),
    )


class TestPauses:
    def test_a_pause_of_past_training_opens_its_order_until_it_is_read_back(self) -> None:
        """The ledger may fall between deciding and writing; asked again it must say the same."""
        book, imposed = new_book(), pause(1, "HK", on=1, reach=Reach.PRIOR_AND_FUTURE)

        opened = book.read_control(imposed)
        assert opened is not None
        assert book.read_control(imposed) == opened

        book.read_order(opened)
        assert book.read_control(imposed) is None

    def test_a_scope_that_nobody_understands_is_purged_as_it_is_paused(self) -> None:
        """The order must cover what the pause covers, or data stays that the regulator meant."""
        opened = new_book().read_control(pause(1, "Atlantis", on=1, reach=Reach.PRIOR_AND_FUTURE))

        assert opened is not None
        assert opened.scope is not None
        assert opened.scope.jurisdictions == ("*",)

    def test_other_controls_open_nothing(self) -> None:
        """A lift or a policy deletes no data."""
        book = new_book()

        for control in (pause(1, "HK", on=1), lift(2, on=2), policy(3, terms("*"), on=3)):
            assert book.read_control(control) is None
        assert isinstance(book.controls.log[0], PauseImposed)


class TestReceipts:
    def test_an_order_is_settled_by_the_last_final_receipt(self) -> None:
        """Each declared data set has to answer."""
        book = new_book()
        book.read_order(order())

        assert book.read_receipt(receipt(DECLARED[0])) is None
        assert book.read_receipt(receipt(DECLARED[1], Result.FAILED)) is None
        assert book.read_receipt(receipt(DECLARED[1], Result.NOT_FOUND)) == replace(
            order(), is_settled=True
        )

    def test_receipts_that_come_before_their_order_count(self) -> None:
        """The topics have no order between them."""
        book = new_book()
        for pair in DECLARED:
            book.read_receipt(receipt(pair))

        assert book.read_order(order()) == replace(order(), is_settled=True)

    def test_a_settled_order_stays_settled_when_it_is_opened_again(self) -> None:
        """An event that is replayed opens its order once more; subscribers must not delete
        again.
        """
        book = new_book()
        book.read_order(replace(order(), is_settled=True))

        assert book.read_order(order()) == replace(order(), is_settled=True)
        assert book.orders[order().order_id].is_settled

    def test_an_order_for_which_nobody_is_declared_stays_open(self) -> None:
        """Nobody can say that it was kept."""
        book = Book(Controls(WORLD), ())
        book.read_order(order())

        assert book.read_receipt(receipt(DECLARED[0])) is None
        assert not book.orders[order().order_id].is_settled

    def test_an_order_whose_publication_failed_is_settled_again(self) -> None:
        """What counts is what the log says, not what was tried."""
        book = new_book()
        book.read_order(order())
        for pair in DECLARED:
            book.read_receipt(receipt(pair))

        assert book.read_receipt(receipt(DECLARED[0])) == replace(order(), is_settled=True)

    @given(st.permutations(["order", "order", "first", "first", "second", "failed"]))
    def test_messages_in_any_order_leave_the_same_owed(self, messages: list[str]) -> None:
        """Topics are read side by side; the answer to a regulator must not depend on who was
        quicker.
        """
        book = new_book()
        for message in messages:
            if message == "order":
                book.read_order(order())
            else:
                pair = DECLARED[message == "second"]
                book.read_receipt(
                    receipt(pair, Result.FAILED if message == "failed" else Result.DELETED)
                )

        firsts = [message for message in messages if message in ("first", "failed")]
        assert book.owed(order()) == ((DECLARED[0],) if firsts[-1] == "failed" else ())


class TestOverdue:
    def test_open_and_overdue_orders_are_counted_per_subscriber(self) -> None:
        """An alert names who has to act."""
        book = new_book()
        book.read_order(order("a", due=10))
        book.read_order(order("b", due=30))
        book.read_receipt(receipt(DECLARED[0], order_id="a"))

        assert book.open_and_overdue(day(20)) == {"ranker": (1, 0), "writer": (2, 1)}

    def test_the_deadline_itself_is_still_in_time(self) -> None:
        """A member was told this moment."""
        book = new_book()
        book.read_order(order("a", due=10))

        assert book.open_and_overdue(day(10))["ranker"] == (1, 0)

    def test_a_settled_order_is_owed_by_nobody(self) -> None:
        """An alert that never ends is not read."""
        book = new_book()
        book.read_order(replace(order(due=1), is_settled=True))

        assert book.open_and_overdue(day(20)) == {"ranker": (0, 0), "writer": (0, 0)}
