"""Whoever can write to the store must not be able to have anybody trained on: each attack has a
code of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.strategies import chose, day, policy, terms
from tests.unit.bundles.world import NOW, Log, populated, published

from consentry.bundles import (
    Bundle,
    BundleRefused,
    BundleStore,
    Manifest,
    PublicKeys,
    SigningKey,
    open_bundle,
    restore,
)
from consentry.bundles import reader as reading_module
from consentry.bundles.errors import CODES
from consentry.bundles.manifest import (
    MANIFEST_BYTES_MAX,
    POINTER_BYTES_MAX,
    SIGNATURE_BYTES_MAX,
    Pointer,
    canonical,
    manifest_bytes,
    pointer_bytes,
    read_manifest,
    signature_bytes,
)
from consentry.bundles.writer import publish
from consentry.domain.errors import Refused, Unavailable
from consentry.domain.values import Choice, Micros

LATER = Micros(NOW + 3600 * 1_000_000)


class Shop:
    """A directory with a snapshot and two deltas, whose bundler's key is at hand for what only a
    bundler could do.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = SigningKey.generate()
        self.keys = PublicKeys([self.key.public])
        self.store = BundleStore(directory)
        log = populated()
        self.log = log
        self.first = published(self.store, log.state, self.key)
        log.member("m:quiet", chose(Choice.OPT_OUT, 20, on=3, member="m:quiet"))
        self.second = published(self.store, log.state, self.key, sequence=2, parent=self.first)
        log.member("1002", chose(Choice.OPT_OUT, 21, on=3, member="1002"))
        self.third = published(self.store, log.state, self.key, sequence=3, parent=self.second)

    def path(self, manifest: Manifest, name: str) -> Path:
        """A file of a bundle."""
        return self.directory / manifest.bundle_id / name

    def use(self, **options: Any) -> Bundle:
        """Open the newest bundle and read all of it."""
        given: dict[str, Any] = {"keys": self.keys, "namespace": "consentry", "now": NOW} | options
        bundle = open_bundle(self.store, **given)
        for _ in bundle.record_batches():
            pass
        bundle.controls()
        for purpose in bundle.manifest.purposes:
            bundle.own_exclusions(purpose)
        return bundle

    def code(self, **options: Any) -> str:
        """Why it is refused."""
        with pytest.raises(BundleRefused) as refused:
            self.use(**options)
        assert refused.value.fix
        assert "m:" not in str(refused.value), "no member ids in errors"
        return refused.value.code.removeprefix("bundle.")

    def sign(self, manifest: Manifest, edit: Callable[[dict[str, Any]], object]) -> None:
        """Have the bundler sign other things than it would, and point to them."""
        told = json.loads(manifest_bytes(manifest))
        edit(told)
        self.sign_bytes(manifest, canonical(told))

    def sign_bytes(self, manifest: Manifest, content: bytes) -> None:
        """The same, of any bytes."""
        self.path(manifest, "manifest.json").write_bytes(content)
        self.path(manifest, "manifest.sig").write_bytes(signature_bytes(content, self.key))
        try:
            found = read_manifest(content, signature_bytes(content, self.key), self.keys)
        except BundleRefused:
            found = manifest
        if manifest is self.third:
            publish(self.store, found, key=self.key)

    def sign_file(self, manifest: Manifest, role: str, content: bytes, **more: Any) -> None:
        """Have the bundler sign another content of its first file of a role."""
        import hashlib

        name = next(one.name for one in manifest.files if one.role == role)
        self.path(manifest, name).write_bytes(content)

        def edit(told: dict[str, Any]) -> None:
            [file] = [one for one in told["files"] if one["name"] == name]
            file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} | more

        self.sign(manifest, edit)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A store with a chain of three."""
    return Shop(tmp_path / "bundles")


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def record_file(manifest: Manifest) -> str:
    """The name of its first file of records."""
    return manifest.with_role("records")[0].name


def test_what_nobody_touched_is_read(shop: Shop) -> None:
    """Every refusal below would be worth nothing if everything were refused."""
    assert shop.use(max_age_seconds=60, least_sequence=3).manifest == shop.third


class TestSignatures:
    """What the bundler did not sign is nobody's word."""

    def test_a_manifest_without_signature_is_refused(self, shop: Shop) -> None:
        """Whoever deletes a file must not be believed for it."""
        shop.path(shop.first, "manifest.sig").unlink()
        assert shop.code() == "unsigned"

    def test_an_empty_signature_is_none(self, shop: Shop) -> None:
        """An upload that broke off."""
        shop.path(shop.third, "manifest.sig").write_bytes(b"")
        assert shop.code() == "unsigned"

    def test_a_pointer_without_signature_is_refused(self, shop: Shop) -> None:
        """It says which bundle counts."""
        pointer = shop.directory / "latest.jsonl"
        pointer.write_bytes(pointer.read_bytes().split(b"\n")[0])
        assert shop.code() == "unsigned"

    @pytest.mark.parametrize("which", ["first", "second", "third"])
    def test_a_manifest_altered_after_signing_is_refused(self, shop: Shop, which: str) -> None:
        """An excluded member's partition could be declared empty, in any bundle of a chain."""
        manifest: Manifest = getattr(shop, which)
        path = shop.path(manifest, "manifest.json")
        path.write_bytes(
            path.read_bytes().replace(b'"newest_policy":"900"', b'"newest_policy":"901"')
        )
        assert shop.code() == "forged"

    def test_a_pointer_altered_after_signing_is_refused(self, shop: Shop) -> None:
        """A number that was raised would make roll-backs pass."""
        pointer = shop.directory / "latest.jsonl"
        pointer.write_bytes(pointer.read_bytes().replace(b'"sequence":3', b'"sequence":9'))
        assert shop.code() == "forged"

    def test_a_stranger_who_claims_the_key_is_refused(self, shop: Shop) -> None:
        """The key's id is public: it proves nothing."""
        content = shop.path(shop.third, "manifest.json").read_bytes()
        told = json.loads(signature_bytes(content, SigningKey.generate()))
        shop.path(shop.third, "manifest.sig").write_bytes(
            canonical(told | {"key_id": shop.key.key_id})
        )
        assert shop.code() == "forged"

    def test_a_stranger_with_a_key_of_their_own_is_refused(self, shop: Shop) -> None:
        """A signature is only worth what is known of its key."""
        content = shop.path(shop.third, "manifest.json").read_bytes()
        shop.path(shop.third, "manifest.sig").write_bytes(
            signature_bytes(content, SigningKey.generate())
        )
        assert shop.code() == "key_unknown"

    def test_after_a_change_of_keys_both_are_believed_until_the_old_one_is_taken_away(
        self, shop: Shop
    ) -> None:
        """Keys that cannot be changed without a gap are not changed."""
        new = SigningKey.generate()
        both = PublicKeys([shop.key.public, new.public])
        shop.log.member("m:late", chose(Choice.OPT_OUT, 22, on=4, member="m:late"))
        delta = published(shop.store, shop.log.state, new, sequence=4, parent=shop.third)
        assert shop.use(keys=both).manifest == delta
        assert shop.code(keys=PublicKeys([new.public])) == "key_unknown", (
            "the chain's first ones are of the old key"
        )
        snapshot = published(shop.store, shop.log.state, new, sequence=5)
        assert shop.use(keys=PublicKeys([new.public])).manifest == snapshot

    @pytest.mark.parametrize(
        "signature", [b"{}", b"[]\n", b"\xff", b'{"algorithm":"none","key_id":"%b","signature":""}']
    )
    def test_what_is_no_signature_is_refused(self, shop: Shop, signature: bytes) -> None:
        """Garbage must not crash its reader either: a job that crashes is started again without the
        check.
        """
        shop.path(shop.third, "manifest.sig").write_bytes(
            signature.replace(b"%b", shop.key.key_id.encode())
        )
        assert shop.code() == "malformed"

    def test_a_pointer_cannot_stand_for_a_manifest(self, shop: Shop) -> None:
        """Both are signed with one key: what is signed says what it is."""
        pointer = Pointer(
            namespace="consentry",
            bundle_id=shop.third.bundle_id,
            sequence=3,
            manifest_sha256=shop.third.sha256,
            created_at=NOW,
        )
        content, signature = pointer_bytes(pointer, shop.key).splitlines()
        shop.path(shop.third, "manifest.json").write_bytes(content)
        shop.path(shop.third, "manifest.sig").write_bytes(signature)
        assert shop.code() == "malformed"


class TestFiles:
    """The very bytes that were signed for, all of them, and nothing else."""

    @pytest.mark.parametrize("role", ["records", "controls", "exclusions"])
    def test_a_file_altered_by_one_bit_is_refused(self, shop: Shop, role: str) -> None:
        """One bit turns an opt-out into an opt-in."""
        for file in shop.first.files:
            if file.role == role:
                flip(shop.path(shop.first, file.name))
        assert shop.code() == "altered"

    def test_a_truncated_file_is_refused(self, shop: Shop) -> None:
        """The members at its end would be nobody to the reader."""
        path = shop.path(shop.first, record_file(shop.first))
        path.write_bytes(path.read_bytes()[:-1])
        assert shop.code() == "truncated"

    def test_a_file_with_more_behind_it_is_refused(self, shop: Shop) -> None:
        """A Parquet file is read from its end: what is appended would be the file."""
        path = shop.path(shop.first, record_file(shop.first))
        path.write_bytes(path.read_bytes() + path.read_bytes())
        assert shop.code() == "altered"

    def test_a_missing_file_is_refused(self, shop: Shop) -> None:
        """No file is no opt-outs."""
        shop.path(shop.first, record_file(shop.first)).unlink()
        assert shop.code() == "missing"

    @pytest.mark.parametrize("which", ["file", "pointer", "manifest", "directory", "pipe"])
    def test_links_and_pipes_are_not_followed(self, shop: Shop, tmp_path: Path, which: str) -> None:
        """A link leads to what another may change; a pipe has the reader wait for ever."""
        path = {
            "pointer": shop.directory / "latest.jsonl",
            "manifest": shop.path(shop.third, "manifest.json"),
            "directory": shop.directory / shop.third.bundle_id,
        }.get(which, shop.path(shop.first, record_file(shop.first)))
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        if which == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(elsewhere)
        assert shop.code() == "special_file"

    @pytest.mark.parametrize(
        "name",
        [
            "../x",
            "/etc/passwd",
            "a/b",
            "..",
            "a..b",
            "a\\b",
            "",
            ".hidden",
            "A",
            "a\n",
            "manifest.json",
            "n" * 200,
        ],
    )
    def test_a_name_that_leads_elsewhere_is_refused_even_if_signed(
        self, shop: Shop, name: str
    ) -> None:
        """A bundler that was broken into must not reach the trainers' machines."""
        shop.sign(shop.third, lambda told: told["files"][0].update(name=name))
        assert shop.code() == "file_name"

    def test_a_bundle_id_that_leads_elsewhere_is_refused(self, shop: Shop) -> None:
        """It may come from a command line, or from a configuration."""
        with pytest.raises(BundleRefused, match="file_name"):
            open_bundle(
                shop.store, keys=shop.keys, namespace=None, now=NOW, bundle_id="../../secrets"
            )

    def test_two_files_of_one_name_are_refused(self, shop: Shop) -> None:
        """One would be checked and the other meant."""
        shop.sign(shop.third, lambda told: told["files"].append(told["files"][0]))
        assert shop.code() == "malformed"


class TestSizes:
    """What is read is bounded before it is read."""

    def test_a_file_that_says_to_be_huge_is_not_read(self, shop: Shop) -> None:
        """A reader that runs out of memory is a training job that died."""
        shop.sign(shop.third, lambda told: told["files"][0].update(size=1 << 40))
        assert shop.code() == "too_large"

    @pytest.mark.parametrize("which", ["signature", "manifest", "pointer"])
    def test_an_oversized_manifest_signature_or_pointer_is_not_read(
        self, shop: Shop, which: str
    ) -> None:
        """Their sizes are nobody's word: they are read before any signature is checked."""
        path, bound = {
            "signature": (shop.path(shop.third, "manifest.sig"), SIGNATURE_BYTES_MAX),
            "manifest": (shop.path(shop.third, "manifest.json"), MANIFEST_BYTES_MAX),
            "pointer": (shop.directory / "latest.jsonl", POINTER_BYTES_MAX),
        }[which]
        path.write_bytes(path.read_bytes() + b" " * bound)
        assert shop.code() == "too_large"

    def test_of_no_file_more_is_asked_for_than_was_signed_for(self, shop: Shop) -> None:
        """Whoever can write to the store could put a terabyte in the place of a file."""
        chain = (shop.first, shop.second, shop.third)
        sizes = {(one.bundle_id, file.name): file.size for one in chain for file in one.files}
        asked: dict[tuple[str, ...], int] = {}

        class Asked(BundleStore):
            def read(self, *names: str, bytes_max: int) -> bytes:
                asked[names] = bytes_max
                return super().read(*names, bytes_max=bytes_max)

        shop.store = Asked(shop.directory)
        shop.use().check_files()
        assert {names: bound for names, bound in asked.items() if names in sizes} == sizes

    def test_a_value_that_stands_for_many_is_refused(self, shop: Shop) -> None:
        """A dictionary of one value of a megabyte, named a million times, takes a terabyte."""
        table = pq.read_table(shop.path(shop.first, record_file(shop.first)))
        self._sign(shop, table, use_dictionary=["record"])
        assert shop.code() == "bomb"

    def test_values_told_by_what_they_share_are_refused(self, shop: Shop) -> None:
        """So does a long prefix that each value shares."""
        table = pq.read_table(shop.path(shop.first, record_file(shop.first)))
        self._sign(
            shop, table, use_dictionary=False, column_encoding={"record": "DELTA_BYTE_ARRAY"}
        )
        assert shop.code() == "bomb"

    def test_a_part_that_decodes_to_too_much_is_refused(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Zeroes compress to nothing."""
        table = pq.read_table(shop.path(shop.first, record_file(shop.first)))
        monkeypatch.setattr(reading_module, "GROUP_BYTES_MAX", 1 << 20)
        big = table.set_column(
            3, "record", pa.array([bytes(1 << 20)] * table.num_rows, pa.binary())
        )
        self._sign(shop, big, use_dictionary=False)
        assert shop.path(shop.first, record_file(shop.first)).stat().st_size < 1 << 16
        assert shop.code() == "bomb"

    def _sign(self, shop: Shop, table: pa.Table, **options: Any) -> None:
        out = pa.BufferOutputStream()
        pq.write_table(table, out, compression="zstd", **options)
        shop.sign_file(shop.first, "records", out.getvalue().to_pybytes())
        _sign_again(shop)

    def test_a_chain_without_end_is_refused(self, shop: Shop) -> None:
        """Each link costs its reader a look into the store."""
        shop.sign(shop.third, lambda told: told.update(deltas=257))
        assert shop.code() == "too_large"

    def test_a_file_with_other_rows_than_told_is_refused(self, shop: Shop) -> None:
        """The manifest is what people compare and act upon."""
        content = shop.path(shop.first, record_file(shop.first)).read_bytes()
        shop.sign_file(shop.first, "records", content, rows=3)
        _sign_again(shop)
        assert shop.code() == "malformed"

    @pytest.mark.parametrize("role", ["records", "controls"])
    def test_a_file_without_a_column_of_its_role_or_of_another_type_is_refused(
        self, shop: Shop, role: str
    ) -> None:
        """Without the column of the damaged all of them would be let go."""
        [name] = [file.name for file in shop.first.files if file.role == role]
        table = pq.read_table(shop.path(shop.first, name))
        column = {"records": "damaged", "controls": "value"}[role]
        texts = table.set_column(
            table.column_names.index(column), column, pa.array(["x"] * table.num_rows, pa.string())
        )
        for other in (table.drop([column]), texts):
            out = pa.BufferOutputStream()
            pq.write_table(other, out, use_dictionary=False)
            shop.sign_file(shop.first, role, out.getvalue().to_pybytes())
            _sign_again(shop)
            assert shop.code() == "malformed"

    @pytest.mark.parametrize("role", ["records", "controls", "exclusions"])
    def test_a_file_that_is_not_of_its_kind_is_refused(self, shop: Shop, role: str) -> None:
        """Bytes that a library chokes on must come out as our error."""
        shop.sign_file(shop.first, role, b"PAR1 this is nothing of the kind PAR1")
        _sign_again(shop)
        assert shop.code() == "malformed"


def _sign_again(shop: Shop) -> None:
    """Have the deltas name the first manifest as it is now, each its parent."""
    parent = shop.first
    for child in (shop.second, shop.third):
        content = shop.path(parent, "manifest.json").read_bytes()
        now = read_manifest(content, shop.path(parent, "manifest.sig").read_bytes(), shop.keys)
        shop.sign(child, lambda told, now=now: told["parent"].update(manifest_sha256=now.sha256))  # type: ignore[misc]
        parent = child


class TestTime:
    """An old truth is no truth."""

    def test_an_expired_bundle_is_refused(self, shop: Shop) -> None:
        """An attacker who withholds the newer ones withholds the newest opt-outs."""
        assert shop.code(now=LATER, max_age_seconds=3599) == "expired"
        assert shop.use(now=LATER, max_age_seconds=3600).manifest == shop.third

    def test_a_new_bundle_of_a_log_that_stood_still_is_expired_too(self, shop: Shop) -> None:
        """While the processor is down opt-outs wait unseen, however young the bundle is."""
        published(shop.store, shop.log.state, shop.key, sequence=4, created_at=LATER)
        assert shop.code(now=LATER, max_age_seconds=60) == "expired"

    def test_a_bundle_with_a_partition_that_proved_nothing_is_expired(self, tmp_path: Path) -> None:
        """What was never proven fresh is of any age."""
        log, key, store = Log(), SigningKey.generate(), BundleStore(tmp_path)
        published(store, log.state, key)
        with pytest.raises(BundleRefused, match="never"):
            open_bundle(
                store, keys=PublicKeys([key.public]), namespace=None, now=NOW, max_age_seconds=1e12
            )

    def test_an_age_that_is_no_number_lets_nothing_through(self, shop: Shop) -> None:
        """A bound that was computed wrongly is no bound."""
        assert shop.code(max_age_seconds=float("nan")) == "expired"

    def test_a_bundle_of_the_future_is_refused(self, shop: Shop) -> None:
        """It would not expire until its day has come."""
        assert shop.code(now=day(99)) == "from_the_future"

    def test_an_older_bundle_than_one_seen_before_is_refused(self, shop: Shop) -> None:
        """Whoever can write to the store could take back the newest opt-outs, all of it truly
        signed.
        """
        publish(shop.store, shop.second, key=shop.key)
        assert shop.use().manifest == shop.second
        assert shop.code(least_sequence=3) == "rolled_back"

    def test_an_older_manifest_in_the_place_of_the_newest_is_refused(self, shop: Shop) -> None:
        """The same, by copying files."""
        shutil.rmtree(shop.directory / shop.third.bundle_id)
        shutil.copytree(
            shop.directory / shop.second.bundle_id, shop.directory / shop.third.bundle_id
        )
        assert shop.code() == "chain"

    def test_a_pointer_and_a_manifest_that_do_not_agree_are_refused(self, shop: Shop) -> None:
        """Two truly signed bundles of one name: only one of them is the newest."""
        pointer = (shop.directory / "latest.jsonl").read_bytes()
        shop.sign(shop.third, lambda told: told.update(created_at=NOW - 1))
        (shop.directory / "latest.jsonl").write_bytes(pointer)
        assert shop.code() == "altered"


class TestChains:
    """A delta is only true on the bundle that it was made on."""

    def test_a_bundle_of_another_namespace_is_refused(self, shop: Shop) -> None:
        """The rehearsal's opt-outs are not the members'."""
        assert shop.code(namespace="rehearsal") == "foreign"

    def test_deltas_in_another_order_are_refused(self, shop: Shop) -> None:
        """The older choice would come last."""
        second, third = (shop.directory / one.bundle_id for one in (shop.second, shop.third))
        second.rename(shop.directory / "aside")
        third.rename(second)
        (shop.directory / "aside").rename(third)
        assert shop.code() == "chain"

    def test_a_missing_delta_is_refused(self, shop: Shop) -> None:
        """Who opted out in it would be nobody."""
        shutil.rmtree(shop.directory / shop.second.bundle_id)
        assert shop.code() == "missing"

    def test_a_missing_snapshot_is_refused(self, shop: Shop) -> None:
        """The deltas alone are a handful of members."""
        shutil.rmtree(shop.directory / shop.first.bundle_id)
        assert shop.code() == "missing"

    def test_another_true_parent_in_the_place_of_the_right_one_is_refused(self, shop: Shop) -> None:
        """A parent is named by its hash, not only by its name."""
        shop.sign(shop.first, lambda told: told.update(created_at=NOW - 1))
        assert shop.code() == "chain"

    @pytest.mark.parametrize(
        "edit",
        [
            {"namespace": "other"},
            {"logs": {"records": "00", "controls": "00"}},
            {"purposes": ["ads"]},
        ],
        ids=["namespace", "logs", "purposes"],
    )
    def test_a_foreign_delta_is_refused(self, shop: Shop, edit: dict[str, Any]) -> None:
        """One bundler, two deployments, one store."""
        shop.sign(shop.third, lambda told: told.update(edit))
        assert shop.code(namespace=None) == "foreign"

    def test_a_delta_that_forgets_a_taint_is_refused(self, shop: Shop) -> None:
        """Members of a tainted partition have to stay excluded in every row and set."""
        shop.sign(shop.third, lambda told: told["partitions"][0].update(tainted=True))
        assert shop.code() == "foreign"

    @pytest.mark.parametrize("edit", [{"sequence": 7}, {"deltas": 9}, {"controls_offset": 0}])
    def test_a_delta_that_does_not_go_on_where_its_parent_ends_is_refused(
        self, shop: Shop, edit: dict[str, int]
    ) -> None:
        """Something lies between them that nobody shows."""
        shop.sign(shop.third, lambda told: told.update(edit))
        assert shop.code() == "chain"

    def test_a_delta_that_has_read_less_than_its_parent_is_refused(self, shop: Shop) -> None:
        """Who follows on from it would read messages twice, or those of another log."""
        shop.sign(shop.third, lambda told: told["partitions"][1].update(records_offset=0))
        assert shop.code() == "chain"

    def test_records_that_do_not_have_the_digest_told_are_noticed(self, shop: Shop) -> None:
        """A bundler that lost a member on its way: the digest is what the table and the log are
        compared by.
        """
        restore(shop.use())
        shop.sign(shop.third, lambda told: told["partitions"][2].update(digest="00" * 16))
        with pytest.raises(BundleRefused, match="digests"):
            restore(shop.use())

    def test_controls_that_are_missing_are_noticed(self, shop: Shop) -> None:
        """A pause that is not there pauses nobody."""
        shop.sign(shop.third, lambda told: told.update(controls_count=2))
        assert shop.code() == "malformed"


class TestForms:
    """A manifest is read strictly, even where it is truly signed."""

    @pytest.mark.parametrize(
        "edit",
        [
            lambda told: told.pop("created_at"),
            lambda told: told.update(unknown=1),
            lambda told: told.update(format="consentry-bundle/2"),
            lambda told: told.update(kind="full"),
            lambda told: told.update(kind="snapshot"),
            lambda told: told.update(sequence=True),
            lambda told: told.update(sequence=-1),
            lambda told: told.update(sequence=1.0),
            lambda told: told.update(sequence=1 << 80),
            lambda told: told.update(partitions=[]),
            lambda told: told.update(partitions=told["partitions"][1:]),
            lambda told: told["partitions"][0].update(digest="zz"),
            lambda told: told["files"][0].update(role="program"),
            lambda told: told["files"][0].update(sha256="00"),
            lambda told: told.update(schema_ids={"ConsentRecord": ["1"]}),
        ],
    )
    def test_what_is_missing_unknown_or_of_another_type_is_refused(
        self, shop: Shop, edit: Callable[[dict[str, Any]], object]
    ) -> None:
        """A reader that guesses what a newer bundler meant may guess wrong."""
        shop.sign(shop.third, edit)
        assert shop.code() == "malformed"

    @pytest.mark.parametrize(
        "content",
        [
            b"[" * 100_000,
            b"nonsense",
            b"{}",
            b"null",
            b'{"a":1,"a":2}',
            b'{"a": 1}',
            b"\xff\xfe",
            b"1" * 10_000,
        ],
        ids=["deep", "text", "empty", "null", "twice", "spaces", "bytes", "long"],
    )
    def test_what_is_not_one_spelling_of_json_is_refused(self, shop: Shop, content: bytes) -> None:
        """Two readers that understand a text differently disagree about who is excluded."""
        shop.sign_bytes(shop.third, content)
        assert shop.code() == "malformed"

    @pytest.mark.parametrize("how", ["spaces", "twice", "order"])
    def test_another_spelling_of_a_true_manifest_is_refused(self, shop: Shop, how: str) -> None:
        """Of a member named twice one reader takes the first, another the last."""
        content = manifest_bytes(shop.third)
        told = json.loads(content)
        spelled = {
            "spaces": json.dumps(told, sort_keys=True).encode(),
            "twice": content.replace(b'{"bundle_id"', b'{"namespace":"other","bundle_id"', 1),
            "order": json.dumps(dict(reversed(told.items())), separators=(",", ":")).encode(),
        }[how]
        assert json.loads(spelled) == told
        shop.sign_bytes(shop.third, spelled)
        assert shop.code() == "malformed"


def test_an_empty_store_is_told_from_a_refused_bundle(tmp_path: Path, keys: PublicKeys) -> None:
    """Nothing there yet, or not reachable: the same call may work in a minute."""
    with pytest.raises(Unavailable, match=r"bundle\.none"):
        open_bundle(str(tmp_path), keys=keys, namespace=None, now=NOW)
    with pytest.raises(Unavailable, match=r"bundle\.none"):
        open_bundle(str(tmp_path / "none"), keys=keys, namespace=None, now=NOW)


def test_a_store_without_driver_is_refused_with_the_package_to_install(keys: PublicKeys) -> None:
    """An operator reads which one is missing."""
    with pytest.raises(Refused, match=r"bundle\.store_driver"):
        open_bundle("nosuchscheme://bucket/x", keys=keys, namespace=None, now=NOW)


def test_a_purpose_that_no_policy_names_has_no_set(shop: Shop) -> None:
    """An empty set would say that nobody is excluded."""
    with pytest.raises(Refused, match=r"bundle\.purpose"):
        shop.use().own_exclusions("genai")


def test_no_delta_is_written_where_one_cannot_say_what_changed(shop: Shop) -> None:
    """Rows of before would keep columns that are not true any more."""
    shop.log.control(policy(901, terms("*", purpose="new"), on=5))
    with pytest.raises(Refused, match=r"bundle\.no_delta"):
        published(shop.store, shop.log.state, shop.key, sequence=4, parent=shop.third)
    again = populated()
    again.member("m:quiet", chose(Choice.OPT_OUT, 20, on=3, member="m:quiet"))
    again.member("1002", chose(Choice.OPT_OUT, 21, on=3, member="1002"))
    with pytest.raises(Refused, match="not known what changed"):
        published(shop.store, again.state, shop.key, sequence=4, parent=shop.third)
    again.state.mark()
    published(shop.store, again.state, shop.key, sequence=4, parent=shop.third)
    again.frontiers(LATER, tainted=frozenset({1}))
    with pytest.raises(Refused, match="tainted"):
        published(shop.store, again.state, shop.key, sequence=5, parent=shop.third)


def test_every_code_is_shown_here() -> None:
    """A code that no test shows may be one that nothing stops."""
    text = Path(__file__).read_text()
    assert [code for code in CODES if f'"{code.removeprefix("bundle.")}"' not in text] == []
