"""Certificates: one spelling, one signature, one tree; every change to them is noticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from consentry.bundles.keys import PublicKeys, SigningKey
from consentry.domain.errors import InvalidInput
from consentry.trainer.runs.certificates import (
    FORMAT,
    MerkleTree,
    canonical,
    read_canonical,
    write_certificate,
)
from consentry.trainer.runs.certificates.merkle import node_hash
from consentry.trainer.runs.certificates.reader import BYTES_MAX, read_certificate
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct_reads, is_sorted, leaves
from consentry.trainer.runs.certificates.statement import CertificateStatement

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
KNOWN = PublicKeys([KEY.public])

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
names = st.from_regex(r"[A-Za-z0-9_]{1,8}", fullmatch=True)
values = st.dictionaries(
    names,
    st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
    ),
)


def statement(**more: Any) -> dict[str, Any]:
    """A statement with all its fields."""
    examples: dict[Any, Any] = {str: "x", int: 3, bool: True, dict[str, int]: {"DEFAULT_ON": 3}}
    examples[int | None] = None

    def example(model: type[BaseModel]) -> dict[str, Any]:
        fields = {}
        for name, field in model.model_fields.items():
            kind: Any = field.annotation
            fields[name] = examples[kind] if kind in examples else example(kind)
        return fields

    return {**example(CertificateStatement), "format": FORMAT, **more}


WRITTEN = write_certificate(statement(), KEY)


class TestCanonical:
    """One spelling for each value."""

    @given(values)
    def test_a_value_comes_back_and_has_one_spelling(self, value: dict[str, Any]) -> None:
        """A digest over bytes that two writers write differently proves nothing."""
        raw = canonical(value)
        assert read_canonical(raw, what="x", code="x") == value
        again = json.dumps(
            json.loads(raw), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        ).encode()
        assert again == raw

    @pytest.mark.parametrize(
        "value", [1.5, {"a b": 1}, {"ä": 1}, 2**53, -(2**53), {1: 2}, b"x", "\ud800", {"a": [0.0]}]
    )
    def test_a_value_with_more_than_one_spelling_is_refused(self, value: Any) -> None:
        """Fractions and large numbers are written differently in different languages."""
        with pytest.raises(ValueError, match=r".+"):
            canonical(value)

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"a": 1}',
            b'{"b":1,"a":2}',
            b'{"a":1,"a":1}',
            b"[]",
            b"{",
            b"\xff",
            b'{"a":1.0}',
            b"[" * 99999,
        ],
    )
    def test_another_spelling_is_refused(self, raw: bytes) -> None:
        """Bytes that may change without being noticed are room for a forgery."""
        with pytest.raises(InvalidInput) as refused:
            read_canonical(raw, what="thing", code="thing.altered")
        assert refused.value.code == "thing.altered"


class TestEnvelope:
    """A certificate's file."""

    def test_a_signed_certificate_is_read_and_verified(self) -> None:
        """Otherwise no certificate would ever be believed."""
        certificate = read_certificate(WRITTEN, KNOWN)
        assert (certificate.statement, certificate.key_id, certificate.is_verified) == (
            statement(),
            KEY.key_id,
            True,
        )
        assert not read_certificate(WRITTEN, PublicKeys([OTHER.public])).is_verified
        assert not read_certificate(WRITTEN).is_verified
        unsigned = read_certificate(write_certificate(statement(), None), KNOWN)
        assert (unsigned.key_id, unsigned.is_verified) == ("", False)

    def test_any_flipped_bit_is_refused(self) -> None:
        """One digit of a root, one letter of a purpose."""
        for place in range(len(WRITTEN)):
            for bit in range(8):
                raw = bytearray(WRITTEN)
                raw[place] ^= 1 << bit
                try:
                    certificate = read_certificate(bytes(raw), KNOWN)
                except InvalidInput:
                    continue
                # The one thing a reader may take for itself: another name of the key, which it then
                # does not know.
                assert not certificate.is_verified, place

    @given(st.integers(0, len(WRITTEN)), st.binary(max_size=4), st.integers(0, 4))
    def test_bytes_added_or_left_out_are_refused(
        self, place: int, put_in: bytes, taken: int
    ) -> None:
        """Cutting, adding and replacing."""
        raw = WRITTEN[:place] + put_in + WRITTEN[place + taken :]
        if raw != WRITTEN:
            try:
                assert not read_certificate(raw, KNOWN).is_verified
            except InvalidInput as error:
                assert error.code.startswith("certificate.")  # noqa: PT017 - both ways of not being believed are right

    @pytest.mark.parametrize("name", sorted(CertificateStatement.model_fields))
    def test_a_changed_field_is_refused_even_with_a_new_digest(self, name: str) -> None:
        """Whoever changes a field computes the digest anew; the signature they cannot."""
        envelope = json.loads(WRITTEN)
        envelope["certificate"][name] = FORMAT if name == "format" else "other"
        if name == "format":
            envelope["certificate"]["run_id"] = "other"
        body = canonical(envelope["certificate"])
        envelope["digest"] = "sha256:" + hashlib.sha256(body).hexdigest()
        with pytest.raises(InvalidInput):
            read_certificate(canonical(envelope) + b"\n", KNOWN)

    def test_a_signature_by_another_key_under_a_known_name_is_refused(self) -> None:
        """The name of a key is no secret."""
        forged = json.loads(write_certificate(statement(), OTHER))
        forged["signature"]["key"] = KEY.key_id
        with pytest.raises(InvalidInput) as refused:
            read_certificate(canonical(forged) + b"\n", KNOWN)
        assert refused.value.code == "certificate.tampered"

    def test_a_signature_over_something_other_than_a_certificate_does_not_fit(self) -> None:
        """The same key may sign bundles: no signature from there may pass for a certificate's."""
        envelope = json.loads(WRITTEN)
        import base64

        body = canonical(envelope["certificate"])
        envelope["signature"]["value"] = base64.urlsafe_b64encode(KEY.sign(body)).decode()
        with pytest.raises(InvalidInput):
            read_certificate(canonical(envelope) + b"\n", KNOWN)

    def test_fields_that_are_missing_or_of_another_kind_are_refused(self) -> None:
        """A reader that ends with a traceback has not refused the certificate."""
        for name in CertificateStatement.model_fields:
            less = statement()
            del less[name]
            for wrong in (less, statement(**{name: []})):
                with pytest.raises(InvalidInput):
                    read_certificate(write_certificate(wrong, KEY), KNOWN)
        with pytest.raises(InvalidInput):
            read_certificate(write_certificate(statement(more=1), KEY), KNOWN)
        with pytest.raises(InvalidInput):
            read_certificate(write_certificate(statement(counts={"OPTED_IN": "3"}), KEY), KNOWN)
        with pytest.raises(InvalidInput):
            read_certificate(b"x" * (BYTES_MAX + 1), KNOWN)


def root_by_definition(entries: list[bytes]) -> bytes:
    """The root as RFC 6962, section 2.1, defines it."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    split = 1
    while split * 2 < len(entries):
        split *= 2
    return node_hash(root_by_definition(entries[:split]), root_by_definition(entries[split:]))


class TestMerkle:
    """The tree over what was read."""

    def test_roots_are_those_of_other_implementations(self) -> None:
        """The test vectors of certificate-transparency implementations."""
        entries = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ]
        roots = {
            0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        }
        for size, root in roots.items():
            tree = MerkleTree()
            tree.add(bytes.fromhex(entry) for entry in entries[:size])
            assert tree.root().hex() == root

    @given(st.lists(st.binary(max_size=3), max_size=40))
    def test_the_root_is_that_of_the_definition(self, entries: list[bytes]) -> None:
        """Built piece by piece or at once."""
        tree = MerkleTree()
        tree.add(entries[:7])
        tree.add(entries[7:])
        assert (tree.root(), tree.size) == (root_by_definition(entries), len(entries))


texts = st.sampled_from(["a", "b", "aa", "", "\\N", "\t", "a\tb", "\n", "\\", "ä"])
rows = st.fixed_dictionaries(
    {
        "member_id": texts,
        "jurisdiction": st.none() | texts,
        "category": st.none() | texts,
        "collected_from": st.none() | st.integers(0, 2),
        "shard": texts,
        "first_read_at": st.integers(0, 3),
        "last_read_at": st.integers(3, 5),
        "rows": st.integers(1, 3),
    }
)


class TestReads:
    """The table of what was read."""

    @given(st.lists(rows, max_size=6))
    def test_reads_are_sorted_distinct_and_each_has_a_leaf_of_its_own(
        self, rows_given: list[dict[str, Any]]
    ) -> None:
        """Two reads with one leaf could be exchanged without being noticed."""
        rows_given = [{name: row[name] for name in SCHEMA.names} for row in rows_given]
        reads = distinct_reads(pa.Table.from_pylist(rows_given, schema=SCHEMA))
        keys = [tuple(row.values())[:5] for row in reads.to_pylist()]
        assert (
            len(set(keys)) == len(keys) == len({tuple(row.values())[:5] for row in rows_given})
            or not rows_given
        )
        assert sum(reads["rows"].to_pylist()) == sum(row["rows"] for row in rows_given)
        assert is_sorted(reads)
        assert reads.equals(distinct_reads(reads))
        if reads.num_rows > 1:
            assert not is_sorted(reads.take(pa.array(range(reads.num_rows - 1, -1, -1))))
            assert not is_sorted(pa.concat_tables([reads.slice(0, 1), reads.slice(0, 1)]))
        every = leaves(pa.Table.from_pylist(rows_given, schema=SCHEMA)) if rows_given else []
        assert len(set(every)) == len({tuple(row.items()) for row in rows_given})
        assert all(leaf.count(b"\t") == 7 and b"\n" not in leaf for leaf in every)
