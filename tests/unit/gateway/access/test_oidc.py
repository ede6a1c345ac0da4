"""Tokens of an issuer: an honest one says who calls; every forged one is refused, each for a reason
of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms
from structlog.testing import capture_logs
from tests.unit.gateway.access.issuer import (
    AUDIENCE,
    Issuer,
    PrivateKey,
    certificate_for_loopback,
    decoded,
    ec_key,
    ed_key,
    encoded,
    public_jwk,
    public_pem,
    rsa_key,
    running_issuer,
    signed,
)
from tests.unit.gateway.access.test_keys import Ticks

from consentry.domain.errors import InvalidInput
from consentry.gateway.access import Authenticator, OidcSettings, Principal, Role, Unauthenticated
from consentry.gateway.access.authenticator import RefreshNeed
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.jwks import SigningKeys, jwks_fetcher
from consentry.gateway.access.oidc import OidcScheme


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer that signs with one RSA key."""
    with running_issuer("RS256", k1=rsa_key("first")) as running:
        yield running


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def settings_of(issuer: Issuer, **changes: Any) -> OidcSettings:
    """The settings of a gateway that believes the issuer."""
    given = OidcSettings(
        issuer=issuer.url,
        audience=AUDIENCE,
        jwks_url=f"{issuer.url}/jwks",
        algorithm=issuer.algorithm,  # type: ignore[arg-type]
        keys_ttl_seconds=100,
    )
    return replace(given, **changes)


def scheme_of(issuer: Issuer, ticks: Ticks | None = None, **changes: Any) -> OidcScheme:
    """The credential scheme of a gateway that believes the issuer."""
    settings, monotonic = settings_of(issuer, **changes), ticks or Ticks()
    keys = SigningKeys(
        jwks_fetcher(settings.jwks_url, timeout_seconds=settings.timeout_seconds),
        algorithm=settings.algorithm,
        ttl_seconds=settings.keys_ttl_seconds,
        monotonic_seconds=monotonic,
    )
    return OidcScheme(settings, keys, monotonic_seconds=monotonic)


def ask(scheme: OidcScheme, token: str) -> Principal:
    """What the authenticator does with a token, without its one message for every cause."""
    if scheme.need(token) is not RefreshNeed.NOTHING:
        scheme.renew()
    return scheme.verify(token)


def refused(scheme: OidcScheme, token: str) -> str:
    """The cause that a token is refused for."""
    with pytest.raises(BadCredential) as caught:
        ask(scheme, token)
    return caught.value.cause


class TestHonest:
    @pytest.mark.parametrize(
        ("algorithm", "key"),
        [
            ("RS256", rsa_key("first")),
            ("PS256", rsa_key("first")),
            ("ES256", ec_key("e")),
            ("EdDSA", ed_key("d")),
        ],
    )
    @pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
    def test_an_honest_token_says_who_calls(
        self, algorithm: str, key: PrivateKey, typ: str
    ) -> None:
        """People at the desk have no other credential."""
        with running_issuer(algorithm, k1=key) as issuer:
            found = ask(scheme_of(issuer), issuer.token({"typ": typ}))

        assert found == Principal(subject="ada", roles=frozenset({Role.DESK}), credential="oidc")

    def test_the_gateway_may_be_one_of_several_audiences(self, issuer: Issuer) -> None:
        """Issuers list their own user info beside us."""
        assert (
            ask(scheme_of(issuer), issuer.token(claims={"aud": [AUDIENCE, "other"]})).subject
            == "ada"
        )

    def test_clocks_may_be_a_little_apart(self, issuer: Issuer) -> None:
        """A token of just now must not be refused because our clock is two seconds behind."""
        soon = int(time.time()) + 3

        assert (
            ask(scheme_of(issuer), issuer.token(claims={"nbf": soon, "iat": soon})).subject == "ada"
        )

    @pytest.mark.parametrize(
        ("roles", "expected"),
        [
            (["desk", "approver"], {Role.DESK, Role.APPROVER}),
            ("desk approver", {Role.DESK, Role.APPROVER}),
            (["desk", "king", "DESK", ""], {Role.DESK}),
            (["king"], set()),
            (..., set()),
            (None, set()),
            ({"desk": True}, set()),
            (["desk", 1], set()),
            (7, set()),
        ],
    )
    def test_only_known_roles_count(
        self, issuer: Issuer, roles: object, expected: set[Role]
    ) -> None:
        """A claim that we half understand must not become a role."""
        assert ask(scheme_of(issuer), issuer.token(claims={"roles": roles})).roles == expected

    def test_the_claims_have_the_names_that_the_settings_give(self, issuer: Issuer) -> None:
        """Every identity provider calls them differently, some inside another claim."""
        scheme = scheme_of(
            issuer,
            roles_claim="realm_access.roles",
            purposes_claim="https://consentry.example/purposes",
            subscriber_claim="who.system",
        )
        claims = {
            "roles": ["desk"],
            "realm_access": {"roles": ["trainer"]},
            "https://consentry.example/purposes": ["ads"],
            "who": {"system": "ranker"},
        }

        found = ask(scheme, issuer.token(claims=claims))

        assert found.roles == {Role.TRAINER}
        assert found.purposes == frozenset({"ads"})
        assert found.subscriber == "ranker"

    @pytest.mark.parametrize(
        ("purposes", "expected"),
        [
            (["ads", "ranking"], {"ads", "ranking"}),
            ("ads ranking", {"ads", "ranking"}),
            (["Not A Name", "ads"], {"ads"}),
            (["*"], None),
            (..., set()),
            ([], set()),
            ({"ads": 1}, set()),
        ],
    )
    def test_a_trainer_has_the_purposes_that_are_named(
        self, issuer: Issuer, purposes: object, expected: set[str] | None
    ) -> None:
        """No claim is no purpose: a mapping that somebody forgot must not open all of them."""
        token = issuer.token(claims={"roles": ["trainer"], "purposes": purposes})

        assert ask(scheme_of(issuer), token).purposes == expected


def _replaced(token: str, part: int, text: str) -> str:
    parts = token.split(".")
    parts[part] = text
    return ".".join(parts)


def _cut(token: str, part: int) -> str:
    return _replaced(token, part, encoded(decoded(token.split(".")[part])[:-9]))


def _with(**claims: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(claims=claims)


def _dated(claim: str, *, seconds: int) -> Callable[[Issuer], str]:
    """A time so far from when the token is asked for: the modules of a long run are read minutes
    before.
    """
    return lambda issuer: issuer.token(claims={claim: int(time.time()) + seconds})


def _headed(**header: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(header=header)


def _raw(header: str, payload: str | None = None) -> Callable[[Issuer], str]:
    """A token whose header, or payload, is this text and nothing else, well signed."""
    return lambda issuer: signed(header, payload or issuer.claims(), rsa_key("first"), "RS256")


def _hmac_with_public_key(issuer: Issuer) -> str:
    return signed(
        issuer.header(alg="HS256"), issuer.claims(), public_pem(rsa_key("first")), "HS256"
    )


def _hmac_under_our_algorithm(issuer: Issuer) -> str:
    return signed(issuer.header(), issuer.claims(), public_pem(rsa_key("first")), "HS256")


def _own_key_inside(issuer: Issuer) -> str:
    own = rsa_key("forger")
    return signed(issuer.header(jwk=public_jwk(own, "RS256")), issuer.claims(), own, "RS256")


def _altered(issuer: Issuer) -> str:
    return _replaced(issuer.token(), 1, encoded(issuer.claims(roles=["approver"])))


def _payload_text(issuer: Issuer, **claims: Any) -> str:
    return json.dumps(issuer.claims(**claims))


HEADER = '"alg":"RS256","typ":"at+jwt","kid":"k1"'
FORGED: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "no algorithm, no signature": (
        lambda issuer: f"{encoded(issuer.header(alg='none'))}.{encoded(issuer.claims())}.",
        "token_malformed",
    ),
    "no algorithm, somebody's signature": (
        lambda issuer: _replaced(issuer.token(), 0, encoded(issuer.header(alg="none"))),
        "token_algorithm",
    ),
    "no algorithm, spelt otherwise": (
        lambda issuer: _replaced(issuer.token(), 0, encoded(issuer.header(alg="nOnE"))),
        "token_algorithm",
    ),
    "HS256 with the public key as its secret": (_hmac_with_public_key, "token_algorithm"),
    "an HMAC with the public key that says RS256": (_hmac_under_our_algorithm, "token_signature"),
    "another algorithm of the same key": (
        lambda issuer: signed(
            issuer.header(alg="PS256"), issuer.claims(), rsa_key("first"), "PS256"
        ),
        "token_algorithm",
    ),
    "another family": (
        lambda issuer: signed(issuer.header(alg="ES256"), issuer.claims(), ec_key("e"), "ES256"),
        "token_algorithm",
    ),
    "the algorithm as a list": (_headed(alg=["RS256"]), "token_algorithm"),
    "no algorithm at all": (_headed(alg=...), "token_algorithm"),
    "the forger's key inside": (_own_key_inside, "token_header_parameter"),
    "the forger's certificates inside": (_headed(x5c=["MIIB"]), "token_header_parameter"),
    "a key set elsewhere": (_headed(jku="http://127.0.0.1:1/jwks"), "token_header_parameter"),
    "certificates elsewhere": (_headed(x5u="http://169.254.169.254/"), "token_header_parameter"),
    "crit": (_headed(crit=["exp"]), "token_header_parameter"),
    "an empty crit": (_headed(crit=[]), "token_header_parameter"),
    "a payload that is not encoded": (_headed(b64=False, crit=["b64"]), "token_header_parameter"),
    "kid as a path": (_headed(kid="../../../../dev/null"), "token_key_unknown"),
    "kid as a query": (_headed(kid="k1'UNION/**/SELECT/**/'k1"), "token_key_unknown"),
    "kid with spaces": (_headed(kid="k1' OR '1'='1"), "token_key_id"),
    "kid with a line": (_headed(kid="k1\n"), "token_key_id"),
    "kid as a list": (_headed(kid=["k1"]), "token_key_id"),
    "kid as a number": (_headed(kid=1), "token_key_id"),
    "an endless kid": (_headed(kid="k" * 201), "token_key_id"),
    "no kid": (_headed(kid=...), "token_key_id"),
    "a kid that nobody has": (_headed(kid="k9"), "token_key_unknown"),
    "another's key under a known kid": (
        lambda issuer: signed(issuer.header(), issuer.claims(), rsa_key("forger"), "RS256"),
        "token_signature",
    ),
    "expired": (_dated("exp", seconds=-60), "token_expired"),
    "no exp": (_with(exp=...), "token_claim_missing"),
    "exp as text": (_with(exp="99999999999"), "token_time"),
    "exp as yes": (_with(exp=True), "token_expired"),
    "exp beyond all numbers": (_with(exp=10**400), "token_time"),
    "exp as infinity": (
        lambda issuer: signed(
            issuer.header(),
            _payload_text(issuer, exp=0).replace('"exp": 0', '"exp": 1e999'),
            rsa_key("first"),
            "RS256",
        ),
        "token_invalid",
    ),
    "not yet valid": (_dated("nbf", seconds=600), "token_not_yet_valid"),
    "no nbf": (_with(nbf=...), "token_claim_missing"),
    "nbf as text": (_with(nbf="1"), "token_time"),
    "issued tomorrow": (_dated("iat", seconds=86_400), "token_not_yet_valid"),
    "no iat": (_with(iat=...), "token_claim_missing"),
    "another audience": (_with(aud="https://other.example"), "token_audience"),
    "an audience that begins as ours": (_with(aud=AUDIENCE + ".evil"), "token_audience"),
    "no audience": (_with(aud=...), "token_claim_missing"),
    "an audience of nothing": (_with(aud=[]), "token_claim_missing"),
    "another issuer": (_with(iss="https://evil.example"), "token_issuer"),
    "our issuer with a slash": (
        lambda issuer: issuer.token(claims={"iss": issuer.url + "/"}),
        "token_issuer",
    ),
    "issuers in a list": (
        lambda issuer: issuer.token(claims={"iss": [issuer.url]}),
        "token_issuer",
    ),
    "no issuer": (_with(iss=...), "token_claim_missing"),
    "no subject": (_with(sub=...), "token_claim_missing"),
    "an empty subject": (_with(sub=""), "token_subject"),
    "a subject with a line": (_with(sub="ada\nroot"), "token_subject"),
    "a subject that is a number": (_with(sub=7), "token_invalid"),
    "no type": (_headed(typ=...), "token_type"),
    "a logout token": (_headed(typ="logout+jwt"), "token_type"),
    "a proof of possession": (_headed(typ="dpop+jwt"), "token_type"),
    "a type that is no text": (_headed(typ=["at+jwt"]), "token_type"),
    "huge": (_with(roles=["desk"] * 2000), "token_malformed"),
    "the signature cut": (lambda issuer: _cut(issuer.token(), 2), "token_signature"),
    "the signature stripped": (lambda issuer: _replaced(issuer.token(), 2, ""), "token_malformed"),
    "the signature zero": (
        lambda issuer: _replaced(issuer.token(), 2, encoded(bytes(256))),
        "token_signature",
    ),
    "the payload altered": (_altered, "token_signature"),
    "the payload cut": (lambda issuer: _cut(issuer.token(), 1), "token_signature"),
    "alg twice in the header": (_raw('{"alg":"none",' + HEADER + "}"), "token_malformed"),
    "kid twice in the header": (_raw('{"kid":"k2",' + HEADER + "}"), "token_malformed"),
    "sub twice": (
        lambda issuer: signed(
            issuer.header(),
            _payload_text(issuer)[:-1] + ',"sub":"root"}',
            rsa_key("first"),
            "RS256",
        ),
        "token_malformed",
    ),
    "a header that is a list": (_raw("[" + '"RS256"' + "]"), "token_malformed"),
    "a header of endless depth": (_raw("[" * 4000), "token_malformed"),
    "a payload of endless depth": (_raw("{" + HEADER + "}", '{"a":' * 900), "token_invalid"),
    "a payload that is a list": (_raw("{" + HEADER + "}", "[]"), "token_invalid"),
    "not a number in the payload": (
        lambda issuer: signed(
            issuer.header(), _payload_text(issuer)[:-1] + ',"x":NaN}', rsa_key("first"), "RS256"
        ),
        "token_malformed",
    ),
    "encoded with padding": (lambda issuer: issuer.token() + "==", "token_malformed"),
    "in the standard alphabet": (
        lambda issuer: issuer.token().replace("-", "+").replace("_", "/"),
        "token_malformed",
    ),
    "only dots": (lambda issuer: "..", "token_malformed"),
    "a part that is not text": (
        lambda issuer: _replaced(issuer.token(), 0, encoded(b"\xff\xfe")),
        "token_malformed",
    ),
}


class TestForged:
    @pytest.mark.parametrize("name", FORGED)
    def test_a_forged_token_is_refused_and_an_honest_one_beside_it_is_not(
        self, issuer: Issuer, name: str
    ) -> None:
        """Whoever forges a token could lift a pause over a whole country."""
        forge, cause = FORGED[name]
        scheme = scheme_of(issuer)
        assert ask(scheme, issuer.token()).subject == "ada"

        assert refused(scheme, forge(issuer)) == cause
        assert set(issuer.requests) == {"/jwks"}

    @pytest.mark.parametrize("name", FORGED)
    def test_nobody_is_told_what_was_wrong_with_it(self, issuer: Issuer, name: str) -> None:
        """A forger who learns which part was right needs fewer tries; a log with a token in it is a
        stolen token.
        """
        authenticator = Authenticator([scheme_of(issuer)])
        token = FORGED[name][0](issuer)

        with capture_logs() as logs, pytest.raises(Unauthenticated) as caught:
            asyncio.run(authenticator.authenticate(f"Bearer {token}"))

        assert str(caught.value) == str(Unauthenticated())
        assert caught.value.__cause__ is None
        said = repr(logs)
        assert [entry["log_level"] for entry in logs if "cause" in entry] == ["debug"]
        assert not any(part in said for part in token.split(".") if len(part) > 3)

    def test_a_zero_signature_of_an_elliptic_curve_is_refused(self) -> None:
        """A verifier of 2022 took it for every message (CVE-2022-21449)."""
        with running_issuer("ES256", k1=ec_key("e")) as issuer:
            scheme = scheme_of(issuer)
            assert ask(scheme, issuer.token()).subject == "ada"
            for zero in (bytes(64), bytes(63) + b"\x01", b"\xff" * 64, b"", bytes(8)):
                token = _replaced(issuer.token(), 2, encoded(zero))
                assert refused(scheme, token) in {"token_signature", "token_malformed"}

    @pytest.mark.parametrize("algorithm", ["HS256", "none", "RS1", "ES512", ""])
    def test_no_other_algorithm_can_be_configured(self, algorithm: str) -> None:
        """A slip in the settings must not make a public key a shared secret."""
        with pytest.raises(InvalidInput):
            OidcSettings(
                issuer="https://i",
                audience="a",
                jwks_url="https://i/jwks",
                algorithm=algorithm,  # type: ignore[arg-type]
            )

    @pytest.mark.parametrize(
        "change",
        [
            {"issuer": ""},
            {"audience": ""},
            {"jwks_url": ""},
            {"leeway_seconds": 11},
            {"leeway_seconds": -1},
            {"keys_ttl_seconds": 100_000},
            {"keys_ttl_seconds": 1},
            {"timeout_seconds": 0},
        ],
        ids=str,
    )
    def test_settings_that_would_check_less_are_refused(
        self, issuer: Issuer, change: dict[str, Any]
    ) -> None:
        """No audience would accept the tokens of every other service of the company."""
        with pytest.raises(InvalidInput):
            replace(settings_of(issuer), **change)

    @given(st.data())
    def test_whatever_is_changed_in_a_token_it_is_refused_and_nothing_else_happens(
        self, data: st.DataObject
    ) -> None:
        """An error that nobody thought of is a 500, and then a way to find more of them."""
        token, scheme = MUTANTS_OF.token, MUTANTS_OF.scheme
        place = data.draw(st.integers(0, len(token) - 1))
        text = data.draw(st.text(max_size=3))
        cut = data.draw(st.integers(0, 3))
        changed = token[:place] + text + token[place + cut :]
        if changed == token:
            return

        with pytest.raises(BadCredential):
            scheme.verify(changed)


class _MutantsOf:
    """One honest token, and a scheme that knows its key, made when first asked for."""

    def __init__(self) -> None:
        self._made: tuple[str, OidcScheme] | None = None

    def _make(self) -> tuple[str, OidcScheme]:
        if self._made is None:
            with running_issuer("RS256", k1=rsa_key("first")) as issuer:
                scheme = scheme_of(issuer)
                token = issuer.token()
                ask(scheme, token)
            self._made = token, scheme
        return self._made

    @property
    def token(self) -> str:
        """The token."""
        return self._make()[0]

    @property
    def scheme(self) -> OidcScheme:
        """The credential scheme."""
        return self._make()[1]


MUTANTS_OF = _MutantsOf()


class TestKeysOfTheIssuer:
    def test_a_new_key_is_fetched_when_it_is_first_seen(self, issuer: Issuer, ticks: Ticks) -> None:
        """After a rotation nobody must have to restart the gateway."""
        scheme = scheme_of(issuer, ticks)
        ask(scheme, issuer.token())
        issuer.keys = {"k2": rsa_key("second"), **issuer.keys}
        ticks.now += 10

        assert ask(scheme, issuer.token()).subject == "ada"
        assert len(issuer.requests) == 2

    def test_unknown_keys_make_us_ask_at_most_every_ten_seconds(
        self, issuer: Issuer, ticks: Ticks
    ) -> None:
        """Otherwise a forger could have us flood the identity provider of the whole company."""
        scheme = scheme_of(issuer, ticks)
        ask(scheme, issuer.token())

        for number in range(99):
            ticks.now += 0.1
            refused(scheme, issuer.token({"kid": f"x{number}"}))
        assert len(issuer.requests) == 1
        ticks.now += 0.2
        refused(scheme, issuer.token({"kid": "x"}))
        assert len(issuer.requests) == 2

    def test_right_after_an_attempt_nobody_waits_and_nobody_asks(
        self, issuer: Issuer, ticks: Ticks
    ) -> None:
        """While the issuer is down a forger could else hold a thread for each token."""
        issuer.status = 503
        scheme, token = scheme_of(issuer, ticks), issuer.token()
        assert scheme.need(token) is RefreshNeed.NOW
        scheme.renew()

        assert scheme.need(token) is RefreshNeed.NOTHING
        scheme.renew()
        assert len(issuer.requests) == 1

    def test_a_key_that_the_issuer_dropped_counts_no_longer_even_for_a_remembered_token(
        self, issuer: Issuer, ticks: Ticks
    ) -> None:
        """Dropping a key is how an issuer answers its theft."""
        scheme, token = scheme_of(issuer, ticks), issuer.token()
        ask(scheme, token)
        issuer.keys = {"k2": rsa_key("second")}
        ticks.now += 50

        assert scheme.need(token) is RefreshNeed.SOON
        assert refused(scheme, token) == "token_key_unknown"

    def test_while_the_issuer_is_down_known_keys_count_until_their_time_ends(
        self, issuer: Issuer, ticks: Ticks
    ) -> None:
        """An outage of the issuer must not stop an opt-out at once, nor keep an old key alive for
        ever.
        """
        scheme, token = scheme_of(issuer, ticks), issuer.token()
        ask(scheme, token)
        issuer.status = 503

        ticks.now += 99
        assert ask(scheme, token).subject == "ada"
        assert ask(scheme, issuer.token(claims={"sub": "bob"})).subject == "bob"
        ticks.now += 1
        assert refused(scheme, token) == "token_key_unknown"
        issuer.status = 200
        ticks.now += 10
        assert ask(scheme, token).subject == "ada"

    def test_an_issuer_that_was_stopped_lets_nobody_new_in(self, ticks: Ticks) -> None:
        """A gateway that starts while the issuer is away knows nobody, and says so."""
        with running_issuer("RS256", k1=rsa_key("first")) as issuer:
            scheme, fresh, token = (
                scheme_of(issuer, ticks),
                scheme_of(issuer, ticks),
                issuer.token(),
            )
            ask(scheme, token)

        assert ask(scheme, token).subject == "ada"
        assert refused(fresh, token) == "token_key_unknown"
        ticks.now += 100
        assert refused(scheme, token) == "token_key_unknown"

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b'{"keys": {}}', b"\xff", b"[" * 100_000, b" " * ((1 << 20) + 1)]
    )
    def test_a_damaged_key_set_changes_nothing(
        self, issuer: Issuer, ticks: Ticks, body: bytes
    ) -> None:
        """A proxy's error page is no revocation of every key."""
        scheme, token = scheme_of(issuer, ticks), issuer.token()
        ask(scheme, token)
        issuer.body = body
        ticks.now += 60

        assert ask(scheme, token).subject == "ada"

    def test_an_empty_key_set_lets_nobody_in(self, issuer: Issuer, ticks: Ticks) -> None:
        """An issuer that names no key says that none counts."""
        scheme, token = scheme_of(issuer, ticks), issuer.token()
        ask(scheme, token)
        issuer.body = b'{"keys": []}'
        ticks.now += 60

        assert refused(scheme, token) == "token_key_unknown"

    @pytest.mark.parametrize(
        "change",
        [
            {"use": "enc"},
            {"key_ops": ["encrypt"]},
            {"key_ops": "verify"},
            {"alg": "PS256"},
            {"alg": "HS256"},
            {"kty": "oct", "k": "c2VjcmV0"},
            {"kty": "EC"},
            {"d": "AQAB"},
            {"n": "AQAB"},
            {"n": 5},
            {"n": "!"},
            {"e": None},
        ],
        ids=str,
    )
    def test_a_key_that_is_not_for_signatures_of_our_algorithm_is_left_out(
        self, issuer: Issuer, change: dict[str, Any]
    ) -> None:
        """An encryption key or a shared secret must never vouch for anybody; one bad key must not
        hide the others.
        """
        key = {**public_jwk(rsa_key("first"), "RS256", kid="k1", use="sig"), **change}
        good = public_jwk(rsa_key("second"), "RS256", kid="k2")
        issuer.body = json.dumps({"keys": [key, good, 7, None]}).encode()
        scheme = scheme_of(issuer)

        assert refused(scheme, issuer.token()) == "token_key_unknown"
        honest = signed(issuer.header(kid="k2"), issuer.claims(), rsa_key("second"), "RS256")
        assert ask(scheme, honest).subject == "ada"

    def test_a_short_key_is_left_out(self, issuer: Issuer) -> None:
        """1024 bits have been within reach for years."""
        issuer.keys = {"k1": rsa_key("short", 1024)}
        issuer.body = json.dumps(
            {"keys": [public_jwk(issuer.keys["k1"], "RS256", kid="k1")]}
        ).encode()

        assert refused(scheme_of(issuer), issuer.token()) == "token_key_unknown"

    def test_a_key_whose_private_half_is_published_is_left_out(self, issuer: Issuer) -> None:
        """Everybody can sign with it."""
        private = get_default_algorithms()["RS256"].to_jwk(rsa_key("first"), as_dict=True)
        issuer.body = json.dumps(
            {"keys": [{**private, "kid": "k1", "key_ops": ["sign", "verify"]}]}
        ).encode()

        assert refused(scheme_of(issuer), issuer.token()) == "token_key_unknown"

    def test_over_tls_only_an_issuer_that_the_authority_vouches_for_is_believed(
        self, tmp_path: Path
    ) -> None:
        """Whoever sits on the way could hand us keys of their own."""
        tls = certificate_for_loopback(tmp_path)
        with running_issuer("RS256", tls=tls, k1=rsa_key("first")) as issuer:
            trusting = SigningKeys(
                jwks_fetcher(f"{issuer.url}/jwks", ca_file=tls), algorithm="RS256", ttl_seconds=100
            )
            trusting.renew()

            assert issuer.url.startswith("https:")
            assert trusting.find("k1") is not None
            assert refused(scheme_of(issuer), issuer.token()) == "token_key_unknown"
            assert len(issuer.requests) == 1

    def test_two_keys_of_one_name_are_both_left_out(self, issuer: Issuer) -> None:
        """Nobody can say which of them is meant."""
        keys = [public_jwk(rsa_key(name), "RS256", kid="k1") for name in ("first", "second")]
        issuer.body = json.dumps({"keys": keys}).encode()

        assert refused(scheme_of(issuer), issuer.token()) == "token_key_unknown"

    def test_a_redirect_is_not_followed(self, issuer: Issuer) -> None:
        """Keys come from the configured address, not from wherever it points to."""
        issuer.status, issuer.location = 302, f"{issuer.url}/elsewhere"

        assert refused(scheme_of(issuer), issuer.token()) == "token_key_unknown"
        assert issuer.requests == ["/jwks"]

    def test_an_issuer_that_does_not_answer_is_given_up(self, issuer: Issuer) -> None:
        """A request must not hang as long as the issuer does."""
        issuer.gate.clear()

        assert (
            refused(scheme_of(issuer, timeout_seconds=0.2), issuer.token()) == "token_key_unknown"
        )

    @pytest.mark.parametrize(
        "url",
        [
            "http://issuer.example/jwks",
            "http://203.0.113.5/jwks",
            "http://127.0.0.1.evil.example/jwks",
            "http://localhost@evil.example/jwks",
            "https://user:secret@issuer.example/jwks",
            "file:///etc/passwd",
            "ftp://issuer.example/jwks",
            "//issuer.example/jwks",
            "jwks",
        ],
    )
    def test_keys_come_over_tls_or_from_this_machine(self, url: str) -> None:
        """Whoever sits on the way could hand us keys of their own."""
        with pytest.raises(InvalidInput) as caught:
            jwks_fetcher(url)

        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["https://issuer.example/jwks", "http://localhost:1/j", "http://[::1]:1/j"]
    )
    def test_the_usual_addresses_are_accepted(self, url: str) -> None:
        """The rule must not keep honest issuers out."""
        jwks_fetcher(url)


class TestRemembering:
    def test_a_remembered_token_ends_with_its_own_time(self, issuer: Issuer, ticks: Ticks) -> None:
        """Remembering must not make a token live longer."""
        scheme = scheme_of(issuer, ticks)
        token = issuer.token(claims={"exp": int(time.time()) + 20})
        first = ask(scheme, token)
        assert ask(scheme, token) is first

        ticks.now += 21

        # The machine's clock has not moved, so PyJWT accepts it still: what counts is that PyJWT
        # was asked again.
        assert ask(scheme, token) is not first

    def test_a_remembered_token_is_looked_at_again_after_a_minute(
        self, issuer: Issuer, ticks: Ticks
    ) -> None:
        """A minute is what a revoked key may go on at most."""
        scheme, token = scheme_of(issuer, ticks, keys_ttl_seconds=1000), issuer.token()
        first = ask(scheme, token)
        ticks.now += 59

        assert ask(scheme, token) is first
        ticks.now += 1
        assert ask(scheme, token) is not first

    def test_nothing_is_remembered_of_a_refused_token(self, issuer: Issuer) -> None:
        """A forger could fill the memory of the gateway."""
        scheme = scheme_of(issuer)
        ask(scheme, issuer.token())
        for name in FORGED:
            refused(scheme, FORGED[name][0](issuer))

        assert len(scheme._remembered) == 1

    def test_what_is_remembered_is_bounded(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So could everybody with a token a second."""
        monkeypatch.setattr("consentry.gateway.access.oidc.REMEMBERED_MAX", 5)
        scheme = scheme_of(issuer)
        for number in range(12):
            ask(scheme, issuer.token(claims={"jti": str(number)}))

        assert len(scheme._remembered) == 5

    def test_the_token_itself_is_not_kept(self, issuer: Issuer) -> None:
        """A dump of memory is no list of valid tokens."""
        scheme, token = scheme_of(issuer), issuer.token()
        ask(scheme, token)

        assert all(len(fingerprint) == 32 for fingerprint in scheme._remembered)
        assert token not in repr(scheme._remembered)

    def test_an_expired_token_within_the_leeway_is_not_remembered(self, issuer: Issuer) -> None:
        """The leeway is for clocks that are apart, not for a minute more."""
        scheme = scheme_of(issuer)
        ask(scheme, issuer.token(claims={"exp": int(time.time()) - 1}))

        assert len(scheme._remembered) == 0
