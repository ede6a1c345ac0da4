"""API keys: only who holds the secret gets in, and only as long and as far as the key was made
for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consentry.domain.errors import InvalidInput, Refused, UnsafeSetting
from consentry.domain.values import Micros
from consentry.gateway.access.authenticator import RefreshNeed
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.key_file import FileKeyStore, load_pepper, make_pepper
from consentry.gateway.access.keys import ApiKey, ApiKeyScheme, InMemoryKeyStore, Pepper, new_key
from consentry.gateway.access.roles import Principal, Role

NOW = Micros(1_700_000_000_000_000)
PEPPER = Pepper(b"p" * 32)


@dataclass
class Ticks:
    """A monotonic clock that is moved by hand, in seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def producer_key(*, expires: Micros | None = None, pepper: Pepper = PEPPER) -> tuple[ApiKey, str]:
    """A producer's key and its text."""
    return new_key(pepper, subject="billing", roles=[Role.PRODUCER], now=NOW, expires=expires)


def scheme_of(*keys: ApiKey, now: Micros = NOW, pepper: Pepper = PEPPER) -> ApiKeyScheme:
    """The credential scheme of a store that holds these keys."""
    store = InMemoryKeyStore()
    for key in keys:
        store.add(key)
    return ApiKeyScheme(store, pepper, lambda: now)


def refused(scheme: ApiKeyScheme, text: str) -> str:
    """The cause that a credential is refused for."""
    with pytest.raises(BadCredential) as caught:
        scheme.verify(text)
    return caught.value.cause


def with_last(text: str, characters: str) -> str:
    """The text with another end."""
    return text[: -len(characters)] + characters


class TestVerifying:
    def test_the_secret_opens_and_says_who_it_is(self) -> None:
        """Without it no producer could send an opt-out."""
        key, text = producer_key()

        assert scheme_of(key).verify(text) == Principal(
            subject="billing", roles=frozenset({Role.PRODUCER}), credential=key.id
        )

    def test_a_trainers_key_carries_its_purposes_and_its_subscriber(self) -> None:
        """What narrows a trainer has to arrive."""
        purposes = frozenset({"ads"})
        key, text = new_key(
            PEPPER,
            subject="ranker",
            roles=[Role.TRAINER],
            now=NOW,
            purposes=purposes,
            subscriber="ranker",
        )

        found = scheme_of(key).verify(text)

        assert (found.purposes, found.subscriber) == (purposes, "ranker")

    @pytest.mark.parametrize(
        ("spoil", "cause"),
        [
            (lambda text: with_last(text, "AAAA"), "key_unknown"),
            (lambda text: "ck_aaaaaaaaaa" + text[13:], "key_unknown"),
            (lambda text: text[:-1], "key_malformed"),
            (lambda text: text + "A", "key_malformed"),
            (lambda text: text + "=", "key_malformed"),
            (lambda text: text + "\n", "key_malformed"),
            (lambda text: text.upper(), "key_malformed"),
            (lambda text: "ck__" + text[14:], "key_malformed"),
            (lambda text: "ck_../../etc_" + text[14:], "key_malformed"),
            (lambda text: "ck_" + "١" * 10 + text[13:], "key_malformed"),
        ],
    )
    def test_anything_but_the_whole_key_is_refused(
        self, spoil: Callable[[str], str], cause: str
    ) -> None:
        """A guess, a cut key or a look-alike would act in somebody's name."""
        key, text = producer_key()

        assert refused(scheme_of(key), spoil(text)) == cause

    def test_the_other_spellings_of_a_secret_are_not_the_secret(self) -> None:
        """Base64 has four ways to end these 32 bytes; a revocation list by text must not be dodged
        by another.
        """
        key, text = producer_key()
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        others = [with_last(text, alphabet[alphabet.index(text[-1]) ^ bits]) for bits in (1, 2, 3)]

        assert {refused(scheme_of(key), other) for other in others} == {"key_unknown"}

    def test_an_expired_key_is_refused_from_its_last_moment_on(self) -> None:
        """A key in an old laptop has to die by itself."""
        key, text = producer_key(expires=Micros(NOW + 10))

        assert scheme_of(key, now=Micros(NOW + 9)).verify(text).subject == "billing"
        assert refused(scheme_of(key, now=Micros(NOW + 10)), text) == "key_expired"

    def test_a_revoked_key_is_refused(self) -> None:
        """The first thing to do about a stolen key."""
        key, text = producer_key()

        assert refused(scheme_of(replace(key, revoked=NOW)), text) == "key_revoked"

    def test_another_pepper_opens_nothing(self) -> None:
        """Whoever copies the stored keys to a gateway of their own gains nothing."""
        key, text = producer_key()

        assert refused(scheme_of(key, pepper=Pepper(b"q" * 32)), text) == "key_unknown"

    @pytest.mark.parametrize(
        "change",
        [
            {"roles": frozenset({Role.PRODUCER, Role.DESK})},
            {"subject": "somebody.else"},
            {"expires": Micros(NOW + 10**15)},
            {"purposes": None},
            {"subscriber": "writer"},
            {"created": Micros(0)},
        ],
    )
    def test_a_key_that_was_widened_in_the_store_opens_nothing(
        self, change: dict[str, object]
    ) -> None:
        """Whoever can edit the file must not be able to make a trainer's key one of the desk's."""
        key, text = new_key(
            PEPPER,
            subject="ranker",
            roles=[Role.TRAINER],
            now=NOW,
            purposes=frozenset({"ads"}),
            subscriber="ranker",
            expires=Micros(NOW + 10),
        )

        assert refused(scheme_of(replace(key, **change)), text) == "key_unknown"  # type: ignore[arg-type]

    def test_an_unknown_id_costs_the_same_work_as_a_wrong_secret(self) -> None:
        """By the time of an answer nobody may learn which ids exist."""

        lengths: list[int] = []

        class CountingPepper(Pepper):
            def digest(self, text: bytes) -> bytes:
                lengths.append(len(text))
                return super().digest(text)

        pepper = CountingPepper(b"p" * 32)
        key, text = producer_key()
        scheme = scheme_of(key, pepper=pepper)
        lengths.clear()

        refused(scheme, with_last(text, "AAAA"))
        refused(scheme, "ck_aaaaaaaaaa" + text[13:])

        assert len(lengths) == 2
        # SHA-256 works in blocks of 64 bytes: about the same length is the same work.
        assert abs(lengths[0] - lengths[1]) < 64


class TestMaking:
    def test_keys_are_of_256_random_bits_and_never_the_same(self) -> None:
        """A key that could be guessed is a key of everybody."""
        texts = {producer_key()[1] for _ in range(200)}

        assert len(texts) == 200
        for text in texts:
            match = re.fullmatch(r"ck_[a-z2-7]{10}_([A-Za-z0-9_-]{43})", text)
            assert match is not None
            assert len(base64.urlsafe_b64decode(match[1] + "=")) == 32

    @pytest.mark.parametrize("subject", ["", "a b", "a\n", "é", "s" * 201])
    def test_a_subject_that_could_confuse_a_log_is_refused(self, subject: str) -> None:
        """Who did it is read by people, in logs and in the audit."""
        with pytest.raises(InvalidInput):
            new_key(PEPPER, subject=subject, roles=[Role.PRODUCER], now=NOW)

    def test_a_key_without_a_role_is_not_made(self) -> None:
        """It would look like access and be none."""
        with pytest.raises(InvalidInput):
            new_key(PEPPER, subject="billing", roles=[], now=NOW)

    def test_a_trainers_key_that_names_no_purpose_is_not_made(self) -> None:
        """Any purpose has to be said, not left out."""
        with pytest.raises(InvalidInput):
            new_key(PEPPER, subject="ranker", roles=[Role.TRAINER], now=NOW, purposes=frozenset())

    def test_purposes_on_a_key_that_they_do_not_bind_are_refused(self) -> None:
        """Somebody would believe a desk narrowed that is not."""
        with pytest.raises(InvalidInput):
            new_key(PEPPER, subject="desk", roles=[Role.DESK], now=NOW, purposes=frozenset({"ads"}))

    def test_a_key_that_is_over_before_it_begins_is_not_made(self) -> None:
        """A typing error shows at once, not when a producer cannot send."""
        with pytest.raises(InvalidInput):
            producer_key(expires=NOW)

    def test_a_short_pepper_is_refused(self) -> None:
        """A guessable pepper makes the stored hashes ones that anybody can compute."""
        with pytest.raises(Refused):
            Pepper(b"p" * 31)

    def test_the_pepper_does_not_show_itself(self) -> None:
        """A log or a traceback would give it away."""
        assert "pppp" not in f"{PEPPER!r}{PEPPER}"


class TestFile:
    @pytest.fixture
    def ticks(self) -> Ticks:
        return Ticks()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "keys.json"

    @pytest.fixture
    def gateway(self, path: Path, ticks: Ticks) -> ApiKeyScheme:
        """The credential scheme of a running gateway, whose store is another object than the one of the
        command line.
        """
        return ApiKeyScheme(FileKeyStore(path, monotonic_seconds=ticks), PEPPER, lambda: NOW)

    @staticmethod
    def ask(gateway: ApiKeyScheme, text: str) -> str:
        """What the authenticator does with a credential; the subject."""
        if gateway.need(text) is not RefreshNeed.NOTHING:
            gateway.renew()
        return gateway.verify(text).subject

    def test_nothing_of_a_secret_can_be_found_in_the_store(
        self, tmp_path: Path, path: Path
    ) -> None:
        """Whoever dumps the disk or a backup must not be able to act as anybody."""
        store, texts = FileKeyStore(path), []
        for _ in range(20):
            key, text = producer_key()
            store.add(key)
            texts.append(text)
        store.revoke(store.all()[0].id, at=NOW)

        dump = b"".join(file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file())

        assert dump.count(b'"digest"') == 20
        for text in texts:
            secret = text[14:]
            raw = base64.urlsafe_b64decode(secret + "=")
            plain_hashes = [
                hashlib.sha256(each).hexdigest() for each in (text.encode(), secret.encode(), raw)
            ]
            for needle in (
                secret,
                secret[:16],
                raw.hex(),
                base64.b64encode(raw).decode(),
                *plain_hashes,
            ):
                assert needle.encode() not in dump

    def test_the_file_is_its_owners_alone(self, path: Path) -> None:
        """Others on the machine must neither read who has access nor change it."""
        FileKeyStore(path).add(producer_key()[0])

        assert path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o604, 0o666, 0o777])
    def test_a_file_that_others_can_change_or_all_can_read_lets_nobody_in(
        self, path: Path, gateway: ApiKeyScheme, ticks: Ticks, mode: int
    ) -> None:
        """Whoever can write it can undo a revocation."""
        key, text = producer_key()
        FileKeyStore(path).add(key)
        assert self.ask(gateway, text) == "billing"

        path.chmod(mode)
        ticks.now += 5

        with pytest.raises(BadCredential):
            self.ask(gateway, text)
        with pytest.raises(UnsafeSetting):
            FileKeyStore(path).all()

    def test_a_group_that_only_reads_is_accepted(self, path: Path) -> None:
        """Secret stores mount files so for the group of the service."""
        FileKeyStore(path).add(producer_key()[0])
        path.chmod(0o440)

        assert len(FileKeyStore(path).all()) == 1

    def test_a_revocation_is_seen_within_five_seconds(
        self, path: Path, gateway: ApiKeyScheme, ticks: Ticks
    ) -> None:
        """Every second longer a stolen key can send opt-ins in members' names."""
        key, text = producer_key()
        FileKeyStore(path).add(key)
        assert self.ask(gateway, text) == "billing"

        FileKeyStore(path).revoke(key.id, at=NOW)
        ticks.now += 5

        with pytest.raises(BadCredential):
            self.ask(gateway, text)

    def test_a_new_key_is_seen_too(self, path: Path, gateway: ApiKeyScheme, ticks: Ticks) -> None:
        """Rotation must not need a restart."""
        first, other = producer_key(), producer_key()
        FileKeyStore(path).add(first[0])
        self.ask(gateway, first[1])

        FileKeyStore(path).add(other[0])
        ticks.now += 5

        assert self.ask(gateway, other[1]) == "billing"

    def test_what_was_read_stops_to_count_where_the_file_cannot_be_looked_at(
        self, path: Path, gateway: ApiKeyScheme, ticks: Ticks
    ) -> None:
        """A disk that hangs must not keep a revoked key alive: after five seconds nobody is
        known.
        """
        key, text = producer_key()
        FileKeyStore(path).add(key)
        self.ask(gateway, text)

        ticks.now += 5

        assert gateway.need(text) is RefreshNeed.NOW
        assert refused(gateway, text) == "key_unknown"

    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"{",
            b"[]",
            b"\xff\xfe",
            b'{"format": 2, "keys": []}',
            b'{"format": 1, "keys": [{}]}',
            b'{"format": 1, "keys": {"id": 1}}',
            b'{"format": 1, "keys": null}',
            b"[" * 100_000,
        ],
    )
    def test_a_damaged_file_lets_nobody_in_until_it_is_mended(
        self, path: Path, gateway: ApiKeyScheme, ticks: Ticks, damage: bytes
    ) -> None:
        """Half a file could lack just the revocation that matters."""
        key, text = producer_key()
        FileKeyStore(path).add(key)
        whole = path.read_bytes()
        self.ask(gateway, text)

        path.write_bytes(damage)
        ticks.now += 5
        with capture_logs() as logs:
            with pytest.raises(BadCredential):
                self.ask(gateway, text)
            ticks.now += 5
            with pytest.raises(BadCredential):
                self.ask(gateway, text)

        assert [entry["log_level"] for entry in logs] == ["error"]
        path.write_bytes(whole)
        ticks.now += 5
        assert self.ask(gateway, text) == "billing"

    @pytest.mark.parametrize(
        "name", ["id", "digest", "roles", "purposes", "expires", "revoked", "subscriber"]
    )
    @pytest.mark.parametrize("value", [..., 1.5, {}, [1], True], ids=str)
    def test_a_file_with_one_missing_or_foreign_field_lets_nobody_in(
        self, path: Path, name: str, value: object
    ) -> None:
        """A missing `revoked` is not `never revoked`."""
        store = FileKeyStore(path)
        store.add(producer_key()[0])
        document = json.loads(path.read_bytes())
        if value is ...:
            del document["keys"][0][name]
        else:
            document["keys"][0][name] = value
        path.write_text(json.dumps(document))

        with pytest.raises(Refused):
            store.all()

    def test_a_field_that_is_not_known_lets_nobody_in(self, path: Path) -> None:
        """A file of a later version may narrow a key by it."""
        store = FileKeyStore(path)
        store.add(producer_key()[0])
        document = json.loads(path.read_bytes())
        document["keys"][0]["networks"] = ["10.0.0.0/8"]
        path.write_text(json.dumps(document))

        with pytest.raises(Refused):
            store.all()

    def test_a_role_that_does_not_exist_lets_nobody_in(self, path: Path) -> None:
        """A file of a later version may mean more by a role than we know."""
        store = FileKeyStore(path)
        store.add(producer_key()[0])
        path.write_text(path.read_text().replace('"producer"', '"king"'))

        with pytest.raises(Refused):
            store.all()

    def test_an_id_that_stands_there_twice_lets_nobody_in(self, path: Path) -> None:
        """The second entry would hide the revocation in the first."""
        store = FileKeyStore(path)
        store.add(producer_key()[0])
        document = json.loads(path.read_bytes())
        document["keys"] *= 2
        path.write_text(json.dumps(document))

        with pytest.raises(Refused):
            store.all()

    def test_a_file_that_is_gone_lets_nobody_in(
        self, path: Path, gateway: ApiKeyScheme, ticks: Ticks
    ) -> None:
        """Deleting the file must not freeze what was in it."""
        key, text = producer_key()
        FileKeyStore(path).add(key)
        self.ask(gateway, text)

        path.unlink()
        ticks.now += 5

        with pytest.raises(BadCredential):
            self.ask(gateway, text)

    def test_no_key_is_added_to_a_damaged_file(self, path: Path) -> None:
        """Writing it anew would drop every revocation in it."""
        path.write_bytes(b"{")
        path.chmod(0o600)

        with pytest.raises(Refused):
            FileKeyStore(path).add(producer_key()[0])

        assert path.read_bytes() == b"{"

    def test_two_writers_lose_no_key(self, path: Path) -> None:
        """Two people who make keys at once must both have one."""
        keys = [producer_key()[0] for _ in range(16)]
        threads = [threading.Thread(target=FileKeyStore(path).add, args=(key,)) for key in keys]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert {key.id for key in FileKeyStore(path).all()} == {key.id for key in keys}
        assert [
            name for name in os.listdir(path.parent) if name not in ("keys.json", ".keys.json.lock")
        ] == []

    def test_a_link_to_the_file_stays_a_link(self, tmp_path: Path, path: Path) -> None:
        """Replacing the link would leave the gateway with the old file, and the revoked key
        alive.
        """
        link = tmp_path / "link.json"
        FileKeyStore(path).add(producer_key()[0])
        link.symlink_to(path)

        FileKeyStore(link).revoke(FileKeyStore(path).all()[0].id, at=NOW)

        assert link.is_symlink()
        assert FileKeyStore(path).all()[0].revoked == NOW


class TestPepperFile:
    def test_a_new_pepper_is_private_random_and_never_replaced(self, tmp_path: Path) -> None:
        """With another pepper every key dies at once."""
        path = tmp_path / "pepper"
        make_pepper(path)
        first = path.read_bytes()

        with pytest.raises(Refused):
            make_pepper(path)

        assert path.read_bytes() == first
        assert len(first) == 32
        assert path.stat().st_mode & 0o777 == 0o600
        load_pepper(path)

    def test_a_pepper_that_everybody_can_read_is_refused(self, tmp_path: Path) -> None:
        """With it and a line in the file anybody could make a key of the desk."""
        path = tmp_path / "pepper"
        make_pepper(path)
        path.chmod(0o644)

        with pytest.raises(UnsafeSetting):
            load_pepper(path)

    def test_a_missing_pepper_is_said_by_name(self, tmp_path: Path) -> None:
        """Whoever starts the gateway has to know which file it wants."""
        with pytest.raises(Refused, match="pepper"):
            load_pepper(tmp_path / "pepper")
