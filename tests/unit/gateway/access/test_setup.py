"""Which credentials count is said by the settings, and what would let too many in is refused at the
start.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.unit.gateway.access.test_keys import NOW

from consentry.domain.errors import Refused, UnsafeSetting
from consentry.gateway.access import (
    AccessSettings,
    OidcSettings,
    Principal,
    Role,
    Unauthenticated,
    open_authenticator,
)
from consentry.gateway.access.dev import DevScheme
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.key_file import FileKeyStore, load_pepper, make_pepper
from consentry.gateway.access.keys import new_key


@pytest.fixture
def dev() -> DevScheme:
    return DevScheme(bind_host="127.0.0.1", profile="local")


class TestDevMode:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST"]
    )
    @pytest.mark.parametrize("profile", ["local", "rehearsal"])
    def test_it_starts_on_loopback_and_says_so_loudly(self, host: str, profile: str) -> None:
        """Whoever left it on has to see it."""
        with capture_logs() as logs:
            DevScheme(bind_host=host, profile=profile)

        assert [entry["log_level"] for entry in logs] == ["warning"]

    @pytest.mark.parametrize(
        "host",
        [
            *("0.0.0.0", "::", "", "*", "10.0.0.1", "192.168.1.2", "gateway"),  # noqa: S104 - refusing it is the point
            *("127.0.0.1.evil.example", "localhost.evil", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
            *("126.255.255.255", "128.0.0.1", "2130706433", "0x7f000001", "127.1"),
        ],
    )
    def test_it_never_starts_where_others_could_reach_it(self, host: str) -> None:
        """Everybody on the network could lift a pause."""
        with pytest.raises(UnsafeSetting):
            DevScheme(bind_host=host, profile="local")

    @pytest.mark.parametrize("profile", ["production", "", "Local", "staging"])
    def test_it_never_starts_in_production(self, profile: str) -> None:
        """Behind a proxy on the same machine loopback is the whole world."""
        with pytest.raises(UnsafeSetting):
            DevScheme(bind_host="127.0.0.1", profile=profile)

    @pytest.mark.parametrize(
        ("credential", "expected"),
        [
            (
                "dev:ada:desk",
                Principal(subject="ada", roles=frozenset({Role.DESK}), credential="dev"),
            ),
            (
                "dev:ada:desk+approver",
                Principal(
                    subject="ada", roles=frozenset({Role.DESK, Role.APPROVER}), credential="dev"
                ),
            ),
            (
                "dev:ranker:trainer:ads+genai_training",
                Principal(
                    subject="ranker",
                    roles=frozenset({Role.TRAINER}),
                    credential="dev",
                    purposes=frozenset({"ads", "genai_training"}),
                    subscriber="ranker",
                ),
            ),
        ],
    )
    def test_a_name_says_who_it_is(
        self, dev: DevScheme, credential: str, expected: Principal
    ) -> None:
        """So a rehearsal can play every role without an identity provider."""
        assert dev.recognises(credential)
        assert dev.verify(credential) == expected

    @pytest.mark.parametrize(
        "credential",
        [
            "dev:",
            "dev:ada",
            "dev:ada:",
            "dev::desk",
            "dev:ada:king",
            "dev:ada:desk+",
            "dev:ada:+desk",
            "dev:ada:desk:",
            "dev:ada:desk:ads:more",
            "dev:ada:trainer:Ads",
            "dev:ada:trainer:ads+",
            "dev:a/b:desk",
            "dev:ada:desk\n",
        ],
    )
    def test_any_other_form_is_refused(self, dev: DevScheme, credential: str) -> None:
        """A slip in a script must not become another role than was meant."""
        with pytest.raises(BadCredential):
            dev.verify(credential)


class TestOpening:
    def test_no_credential_scheme_is_refused(self) -> None:
        """A gateway that refuses everybody looks healthy and loses opt-outs."""
        with pytest.raises(UnsafeSetting):
            open_authenticator(AccessSettings(), bind_host="127.0.0.1", profile="local")

    def test_dev_mode_is_not_opened_in_production(self) -> None:
        """One forgotten setting must not open the production gateway."""
        with pytest.raises(UnsafeSetting):
            open_authenticator(
                AccessSettings(dev=True), bind_host="127.0.0.1", profile="production"
            )

    def test_dev_mode_has_to_be_asked_for(self, tmp_path: Path) -> None:
        """On loopback and in rehearsal too, names count only where somebody wanted that."""
        make_pepper(tmp_path / "pepper")
        key, text = new_key(
            load_pepper(tmp_path / "pepper"),
            subject="billing",
            roles=[Role.PRODUCER],
            now=NOW,
            expires=None,
        )
        FileKeyStore(tmp_path / "keys.json").add(key)
        settings = AccessSettings(keys_file=tmp_path / "keys.json", pepper_file=tmp_path / "pepper")

        authenticator = open_authenticator(settings, bind_host="127.0.0.1", profile="local")

        assert asyncio.run(authenticator.authenticate(f"Bearer {text}")).subject == "billing"
        with pytest.raises(Unauthenticated):
            asyncio.run(authenticator.authenticate("Bearer dev:ada:desk"))

    def test_half_of_the_files_is_refused(self, tmp_path: Path) -> None:
        """With a mistyped variable keys would silently not count."""
        make_pepper(tmp_path / "pepper")
        with pytest.raises(UnsafeSetting):
            open_authenticator(
                AccessSettings(pepper_file=tmp_path / "pepper"), bind_host="::1", profile="local"
            )

    @pytest.mark.parametrize("content", [None, b"{"])
    def test_files_that_cannot_be_read_are_seen_at_the_start(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        """Better no start than a gateway that knows nobody."""
        make_pepper(tmp_path / "pepper")
        keys = tmp_path / "keys.json"
        if content is not None:
            keys.write_bytes(content)
            keys.chmod(0o600)

        settings = AccessSettings(keys_file=keys, pepper_file=tmp_path / "pepper")
        with pytest.raises(Refused):
            open_authenticator(settings, bind_host="::1", profile="local")

    def test_an_issuer_that_is_away_does_not_keep_the_gateway_from_starting(self) -> None:
        """Producers with keys have to get in while the identity provider is being restarted."""
        oidc = OidcSettings(
            issuer="http://127.0.0.1:9",
            audience="us",
            jwks_url="http://127.0.0.1:9/jwks",
            algorithm="ES256",
        )

        authenticator = open_authenticator(
            AccessSettings(oidc=oidc),
            bind_host="0.0.0.0",  # noqa: S104 - a gateway of production listens everywhere
            profile="production",
        )

        with pytest.raises(Unauthenticated):
            asyncio.run(authenticator.authenticate("Bearer a.b.c"))
