"""What every store of API keys promises, whatever it is made of.

Plug one in with a `store` fixture.
"""

from __future__ import annotations

import pytest

from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import Micros
from consentry.gateway.access.keys import ApiKey, KeyStore, Pepper, new_key
from consentry.gateway.access.roles import Role

PEPPER = Pepper(b"p" * 32)
NOW = Micros(1_700_000_000_000_000)


def made(subject: str = "billing", *, now: Micros = NOW, trainer: bool = False) -> ApiKey:
    """A key to store: a producer's, or a trainer's with everything that a key can have."""
    if not trainer:
        return new_key(PEPPER, subject=subject, roles=[Role.PRODUCER], now=now)[0]
    purposes = frozenset({"ads", "genai_training"})
    key, _ = new_key(
        PEPPER,
        subject=subject,
        roles=[Role.TRAINER, Role.AUDITOR],
        now=now,
        purposes=purposes,
        subscriber="ranker",
        expires=Micros(now + 1),
    )
    return key


class KeyStoreContract:
    """Every test takes `store`, empty and its own."""

    def test_a_key_that_nobody_stored_is_not_found(self, store: KeyStore) -> None:
        """A guess has to be refused, not answered with somebody else's roles."""
        store.renew()

        assert store.find("aaaaaaaaaa") is None

    @pytest.mark.parametrize("trainer", [False, True])
    def test_a_stored_key_is_found_as_it_was_stored(self, store: KeyStore, trainer: bool) -> None:
        """A role, purpose or expiry that got lost on the way would widen what a caller may do."""
        key = made(trainer=trainer)

        store.add(key)
        store.renew()

        assert store.find(key.id) == key
        assert store.all() == (key,)

    def test_a_revoked_key_stays_in_the_list_with_its_day(self, store: KeyStore) -> None:
        """An auditor asks who could do what, and until when."""
        key, other = made(), made("other", now=Micros(NOW + 1))
        store.add(key)
        store.add(other)

        revoked = store.revoke(key.id, at=Micros(NOW + 5))
        store.renew()

        assert revoked.revoked == NOW + 5
        assert store.find(key.id) == revoked
        assert store.all() == (revoked, other)

    def test_a_second_revocation_does_not_move_the_first(self, store: KeyStore) -> None:
        """The day from which a stolen key was harmless must not be rewritten."""
        key = made()
        store.add(key)
        store.revoke(key.id, at=Micros(NOW + 5))

        assert store.revoke(key.id, at=Micros(NOW + 9)).revoked == NOW + 5

    def test_an_unknown_key_cannot_be_revoked_and_is_not_repeated(self, store: KeyStore) -> None:
        """Whoever mistypes an id would believe a stolen key dead; whoever pastes the key would see
        it in a log.
        """
        store.add(made())

        with pytest.raises(InvalidInput) as caught:
            store.revoke("ck_not_an_id", at=NOW)

        assert "not_an_id" not in str(caught.value)

    def test_an_id_is_never_given_twice(self, store: KeyStore) -> None:
        """A second key of one id would take the first one's place, or its revocation."""
        key = made()
        store.add(key)

        with pytest.raises(Refused):
            store.add(key)

        assert store.all() == (key,)
