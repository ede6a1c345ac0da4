"""From a header to a caller: one message for every refusal, and an event loop that never waits for
the outside.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.unit.gateway.access.issuer import Issuer, rsa_key, running_issuer
from tests.unit.gateway.access.test_keys import NOW, PEPPER, producer_key
from tests.unit.gateway.access.test_keys import scheme_of as key_scheme
from tests.unit.gateway.access.test_oidc import scheme_of as oidc_scheme

from consentry.gateway.access import Authenticator, Principal, Role, Unauthenticated
from consentry.gateway.access import authenticator as module
from consentry.gateway.access.authenticator import RefreshNeed
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.key_file import FileKeyStore
from consentry.gateway.access.keys import ApiKeyScheme


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer whose answers wait while its gate is closed."""
    with running_issuer("RS256", k1=rsa_key("first")) as running:
        yield running


class WayInByHand:
    """Lets everybody in once it was renewed, which takes as long as the test wants."""

    def __init__(self, need: RefreshNeed = RefreshNeed.NOW) -> None:
        self.gate = threading.Event()
        self.renewals = 0
        self._need = need
        self._renewed = False

    def recognises(self, credential: str) -> bool:
        return True

    def need(self, credential: str) -> RefreshNeed:
        return RefreshNeed.NOTHING if self._renewed else self._need

    def renew(self) -> None:
        self.renewals += 1
        self.gate.wait(30)
        self._renewed = True

    def verify(self, credential: str) -> Principal:
        if not self._renewed and self._need is RefreshNeed.NOW:
            raise BadCredential("not_renewed")
        return Principal(subject=credential, roles=frozenset(), credential="dev")


class TestHeader:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_the_scheme_is_read_in_any_case(self, scheme: str) -> None:
        """RFC 9110 says so, and clients differ."""
        key, text = producer_key()
        authenticator = Authenticator([key_scheme(key)])

        assert asyncio.run(authenticator.authenticate(f"{scheme} {text}")).subject == "billing"

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Basic {key}",
            "{key}",
            "Bearer  {key}",
            "Bearer {key} ",
            "Bearer {key},x",
            "Bearer {key}\n",
            "Bearer {key}\x00",
            "Bearer é{key}",
            "Bearer\t{key}",
            "Bearer {key} {key}",
            "Bearer " + "x" * 100000,
            "Bearer dev:ada:desk",
            "Bearer x",
        ],
    )
    def test_every_other_header_is_refused_in_the_same_words(self, header: str | None) -> None:
        """A caller without a credential must not become anybody, and learns nothing from the
        refusal.
        """
        key, text = producer_key()
        authenticator = Authenticator([key_scheme(key)])
        given = None if header is None else header.replace("{key}", text)

        with capture_logs() as logs, pytest.raises(Unauthenticated) as caught:
            asyncio.run(authenticator.authenticate(given))

        assert str(caught.value) == str(Unauthenticated())
        assert caught.value.code == "auth.unauthenticated"
        assert [entry["log_level"] for entry in logs] == ["debug"]
        assert text not in repr(logs)
        assert text[14:] not in repr(logs)

    def test_without_a_credential_scheme_everybody_is_refused(self) -> None:
        """A gateway that lost its settings is a closed one."""
        with pytest.raises(Unauthenticated):
            asyncio.run(Authenticator([]).authenticate("Bearer dev:ada:desk"))


class TestWaiting:
    def test_the_loop_goes_on_while_the_issuer_is_asked(self, issuer: Issuer) -> None:
        """A slow identity provider must not hold up the opt-outs of producers, who need it for
        nothing.
        """
        key, text = producer_key()
        authenticator = Authenticator([key_scheme(key), oidc_scheme(issuer)])
        issuer.gate.clear()

        async def both() -> tuple[str, str]:
            person = asyncio.create_task(authenticator.authenticate(f"Bearer {issuer.token()}"))
            while not issuer.requests:
                await asyncio.sleep(0.001)
            producer = await authenticator.authenticate(f"Bearer {text}")
            assert not person.done()
            issuer.gate.set()
            return producer.subject, (await person).subject

        assert asyncio.run(both()) == ("billing", "ada")

    def test_many_callers_wait_for_one_question(self, issuer: Issuer) -> None:
        """After a rotation everybody comes at once; neither the issuer nor our threads may
        drown.
        """
        authenticator = Authenticator([oidc_scheme(issuer)])
        tokens = [issuer.token(claims={"sub": f"user-{number}"}) for number in range(50)]

        async def everybody() -> list[Principal]:
            return await asyncio.gather(
                *(authenticator.authenticate(f"Bearer {token}") for token in tokens)
            )

        assert len({found.subject for found in asyncio.run(everybody())}) == 50
        assert len(issuer.requests) == 1

    def test_a_caller_who_hangs_up_does_not_end_the_question_of_the_others(self) -> None:
        """Otherwise one impatient client could keep everybody out."""
        scheme = WayInByHand()
        authenticator = Authenticator([scheme])

        async def story() -> str:
            first = asyncio.create_task(authenticator.authenticate("Bearer a"))
            second = asyncio.create_task(authenticator.authenticate("Bearer b"))
            while not scheme.renewals:
                await asyncio.sleep(0.001)
            first.cancel()
            await asyncio.sleep(0)
            scheme.gate.set()
            return (await second).subject

        assert asyncio.run(story()) == "b"
        assert scheme.renewals == 1

    def test_nobody_waits_for_ever_and_who_waited_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that hangs is no reason to let somebody in, nor to keep a thousand requests."""
        monkeypatch.setattr(module, "WAIT_SECONDS_MAX", 0.05)
        scheme = WayInByHand()

        async def story() -> None:
            with pytest.raises(Unauthenticated):
                await Authenticator([scheme]).authenticate("Bearer a")
            scheme.gate.set()

        asyncio.run(story())

    def test_what_still_counts_is_renewed_without_waiting(self) -> None:
        """Every few minutes a request would else be slow for no reason."""
        scheme = WayInByHand(RefreshNeed.SOON)

        async def story() -> str:
            found = await Authenticator([scheme]).authenticate("Bearer a")
            scheme.gate.set()
            return found.subject

        assert asyncio.run(story()) == "a"


def test_a_revocation_by_another_process_closes_a_running_gateway(tmp_path: Path) -> None:
    """`consentry keys revoke` is typed elsewhere than where the gateway runs."""
    now = 1000.0
    path = tmp_path / "keys.json"
    key, text = producer_key()
    FileKeyStore(path).add(key)
    gateway = ApiKeyScheme(FileKeyStore(path, monotonic_seconds=lambda: now), PEPPER, lambda: NOW)
    authenticator = Authenticator([gateway])

    async def roles() -> frozenset[Role]:
        return (await authenticator.authenticate(f"Bearer {text}")).roles

    assert asyncio.run(roles()) == {Role.PRODUCER}
    FileKeyStore(path).revoke(key.id, at=NOW)
    now += 5.0

    with pytest.raises(Unauthenticated):
        asyncio.run(roles())
