"""Bundles by HTTP: the bytes that were signed, nothing else of the store, and nobody kept waiting
by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from tests.unit.gateway.in_memory import AUDITOR, CATALOG, START, InMemoryGateway

from consentry.bundles import (
    BundleState,
    BundleStore,
    Manifest,
    PublicKeys,
    SigningKey,
    publish,
    write_bundle,
)
from consentry.bundles.downloads import DownloadStore
from consentry.bundles.manifest import check_signature, read_manifest, read_pointer
from consentry.domain.values import Micros
from consentry.gateway.app import build_gateway
from consentry.gateway.bundle_downloads import DOWNLOADS_MAX, DOWNLOADS_OF_ONE_MAX, BundleDownloads
from consentry.ops.http.problems import Problem

KEY = SigningKey.generate()
KEYS = PublicKeys([KEY.public])
TRAINER = "dev:ranker:trainer"
LATEST = "/v1/bundles/latest"


def bundle(root: Path, sequence: int = 1, key: SigningKey = KEY) -> Manifest:
    """A small bundle, published."""
    store, state = BundleStore(root), BundleState(1, CATALOG)
    manifest = write_bundle(
        store,
        state,
        key=key,
        namespace="consentry",
        sequence=sequence,
        created_at=Micros(START + sequence),
    )
    publish(store, manifest, key=key)
    return manifest


class Shelf(InMemoryGateway):
    """A gateway that hands out bundles of a directory."""

    def __init__(
        self, root: Path, *, believed: PublicKeys | None = KEYS, seconds_max: float = 10.0
    ) -> None:
        super().__init__()
        self.root = root
        self.store = DownloadStore(root)
        self.downloads = BundleDownloads(self.store, believed=believed, seconds_max=seconds_max)
        self.context = replace(self.context, bundles=self.downloads)
        self.app = build_gateway(self.context)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Shelf]:
    found = Shelf(tmp_path / "bundles")
    yield found
    found.downloads.close()


def test_the_newest_manifest_comes_exactly_as_it_was_signed(gateway: Shelf) -> None:
    """One byte that a gateway spells differently makes every bundle a forgery."""
    manifest = bundle(gateway.root)

    reply = gateway.call("GET", LATEST, who=TRAINER)

    content, _, signature = reply.body.partition(b"\n")
    assert reply.status == 200
    assert check_signature("manifest", content, signature, KEYS) == KEY.key_id
    assert read_manifest(content, signature, KEYS) == manifest
    assert (
        reply.headers["etag"]
        == f'"{hashlib.sha256(content).hexdigest()}"'
        == f'"{manifest.sha256}"'
    )
    assert reply.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize("path", [LATEST, f"{LATEST}.jsonl"])
def test_who_has_the_newest_already_is_told_so_until_there_is_another(
    gateway: Shelf, path: str
) -> None:
    """A thousand trainers that poll would fetch the same bytes for ever; one that is told wrongly
    stays behind.
    """
    bundle(gateway.root)
    etag = gateway.call("GET", path, who=TRAINER).headers["etag"]

    same = gateway.call("GET", path, who=TRAINER, if_none_match=etag)
    weak = gateway.call("GET", path, who=TRAINER, if_none_match=f'"x", W/{etag}')
    other = gateway.call("GET", path, who=TRAINER, if_none_match='"x"')
    newer = bundle(gateway.root, 2)
    after = gateway.call("GET", path, who=TRAINER, if_none_match=etag)

    assert [same.status, weak.status, other.status, after.status] == [304, 304, 200, 200]
    assert (same.body, same.headers["etag"]) == (b"", etag)
    assert after.headers["etag"] == f'"{newer.sha256}"'


def test_the_pointer_comes_as_it_lies_in_the_store(gateway: Shelf) -> None:
    """Only the bundler's signature over the number tells a reader that it was not rolled back."""
    manifest = bundle(gateway.root)

    reply = gateway.call("GET", f"{LATEST}.jsonl", who=AUDITOR)

    assert reply.body == (gateway.root / "latest.jsonl").read_bytes()
    assert read_pointer(reply.body, KEYS).bundle_id == manifest.bundle_id


def test_every_file_of_a_manifest_comes_whole(gateway: Shelf) -> None:
    """A trainer starts from these bytes."""
    manifest = bundle(gateway.root)
    names = [*(file.name for file in manifest.files), "manifest.json", "manifest.sig"]

    for name in names:
        reply = gateway.call("GET", f"/v1/bundles/{manifest.bundle_id}/{name}", who=TRAINER)
        content = (gateway.root / manifest.bundle_id / name).read_bytes()
        assert (reply.status, reply.body) == (200, content)
        assert reply.headers["content-length"] == str(len(content))
        assert reply.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert "immutable" in reply.headers["cache-control"]
        again = gateway.call(
            "GET",
            f"/v1/bundles/{manifest.bundle_id}/{name}",
            who=TRAINER,
            if_none_match=reply.headers["etag"],
        )
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("{id}/other.parquet", 404),
        ("{id}/..", 422),
        ("{id}/../../secret", 404),
        ("{id}/..%2F..%2Fsecret", 422),
        ("{id}/%2e%2e", 422),
        ("../secret", 422),
        ("..", 404),
        ("claims/0000000001.json", 422),
        ("0000000009-snapshot-0123456789abcdef/manifest.json", 404),
        ("{id}", 404),
        ("{id}/", 404),
        ("{id}/latest.jsonl", 404),
        ("{id}/notes..txt", 404),
        ("secret", 404),
        ("", 404),
    ],
)
def test_nothing_else_of_the_store_is_handed_out(gateway: Shelf, path: str, status: int) -> None:
    """The machine's other files, and the keys beside the store, would be one request away."""
    manifest = bundle(gateway.root)
    folder = gateway.root / manifest.bundle_id
    (folder / "other.parquet").write_bytes(b"secret")
    (folder / "notes..txt").write_bytes(b"secret")
    (gateway.root.parent / "secret").write_bytes(b"secret")
    (gateway.root / "claims").mkdir()
    (gateway.root / "claims" / "0000000001.json").write_bytes(b"secret")

    reply = gateway.call("GET", f"/v1/bundles/{path.format(id=manifest.bundle_id)}", who=TRAINER)

    assert reply.status == status, reply
    assert b"secret" not in reply.body


@pytest.mark.parametrize("how", ["link", "pipe", "directory", "gone", "linked directory"])
def test_a_file_that_is_not_a_plain_one_is_not_there(gateway: Shelf, how: str) -> None:
    """Whoever may write to the store could have the gateway read any file of its machine, or wait
    for ever.
    """
    manifest = bundle(gateway.root)
    file = gateway.root / manifest.bundle_id / manifest.files[0].name
    target = file.with_name("target")
    file.rename(target)
    if how == "link":
        file.symlink_to(target)
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "directory":
        file.mkdir()
    elif how == "linked directory":
        target.rename(file)
        moved = gateway.root.parent / "elsewhere"
        file.parent.rename(moved)
        file.parent.symlink_to(moved)

    reply = gateway.call(
        "GET", f"/v1/bundles/{manifest.bundle_id}/{manifest.files[0].name}", who=TRAINER
    )

    assert reply.status in (404, 503)
    assert reply.code in ("bundle.not_found", "bundle.store_unavailable", "bundle.special_file")


def test_a_file_that_is_shorter_than_its_manifest_says_cuts_the_connection(gateway: Shelf) -> None:
    """Half of a file that looks whole is a bundle without half of the opt-outs."""
    manifest = bundle(gateway.root)
    file = gateway.root / manifest.bundle_id / manifest.files[0].name
    file.write_bytes(file.read_bytes()[:10])

    with pytest.raises(Exception, match="shorter"):
        gateway.call("GET", f"/v1/bundles/{manifest.bundle_id}/{file.name}", who=TRAINER)


def test_without_a_store_or_a_bundle_that_is_said(gateway: Shelf) -> None:
    """A trainer that takes an empty answer for an empty bundle excludes nobody."""
    none = InMemoryGateway().call("GET", LATEST, who=TRAINER)
    empty = gateway.call("GET", LATEST, who=TRAINER)
    (gateway.root.parent / "bundles").write_text("a file where the store was")
    broken = gateway.call("GET", LATEST, who=TRAINER)

    assert [(one.status, one.code) for one in (none, empty, broken)] == [
        (404, "bundle.no_store"),
        (503, "bundle.none"),
        (503, "bundle.store_unavailable"),
    ]
    assert str(gateway.root).encode() not in broken.body


@pytest.mark.parametrize("believed", [KEYS, None])
def test_what_somebody_else_put_in_the_store_is_not_handed_out(
    tmp_path: Path, believed: PublicKeys | None
) -> None:
    """With the bundler's key a gateway stops a forgery before any trainer sees it; without, the
    trainers do.
    """
    gateway = Shelf(tmp_path / "bundles", believed=believed)
    bundle(gateway.root, key=SigningKey.generate())

    reply = gateway.call("GET", LATEST, who=TRAINER)

    assert (reply.status, reply.code if believed else "") == (
        (503, "bundle.key_unknown") if believed else (200, "")
    )


def test_a_pointer_to_another_manifest_or_to_no_bundle_is_not_followed(tmp_path: Path) -> None:
    """A pointer is the one file that says which bundle counts."""
    gateway = Shelf(tmp_path / "bundles", believed=None)
    manifest = bundle(gateway.root)
    pointer = json.loads((gateway.root / "latest.jsonl").read_bytes().partition(b"\n")[0])
    for change in ({"manifest_sha256": "0" * 64}, {"bundle_id": "../x"}, {"bundle_id": 7}):
        (gateway.root / "latest.jsonl").write_bytes(json.dumps(pointer | change).encode())
        assert gateway.call("GET", LATEST, who=TRAINER).status == 503
    (gateway.root / "latest.jsonl").write_bytes(b"[]")
    assert gateway.call("GET", LATEST, who=TRAINER).code == "bundle.malformed"
    assert (
        manifest.bundle_id
        in gateway.call(
            "GET", f"/v1/bundles/{manifest.bundle_id}/manifest.json", who=AUDITOR
        ).body.decode()
    )


def test_a_trainer_of_some_purposes_is_refused(gateway: Shelf) -> None:
    """It may ask about its purposes only, and a bundle answers for all."""
    bundle(gateway.root)

    reply = gateway.call("GET", LATEST, who="dev:ranker:trainer:ads")

    assert (reply.status, reply.code) == (403, "auth.forbidden")
    assert gateway.call("GET", LATEST, who=TRAINER).status == 200


class Hanging(DownloadStore):
    """A store that answers when it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()

    def find(self, *names: str, bytes_max: int) -> bytes | None:
        self.go.wait(20)
        return super().find(*names, bytes_max=bytes_max)

    def open_file(self, bundle_id: str, name: str) -> IO[bytes] | None:
        return super().open_file(bundle_id, name)


def test_a_store_that_hangs_is_given_up_and_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    """A network drive that hangs would take the decisions of every member with it."""
    gateway = Shelf(tmp_path / "bundles")
    store = Hanging(tmp_path / "bundles")
    gateway.downloads = BundleDownloads(store, believed=KEYS, seconds_max=0.05)
    gateway.context = replace(gateway.context, bundles=gateway.downloads)
    gateway.app = build_gateway(gateway.context)

    reply = gateway.call("GET", LATEST, who=TRAINER)

    assert (reply.status, reply.code) == (503, "bundle.store_unavailable")
    assert gateway.call("GET", "/v1/controls", who=TRAINER).status == 200
    store.go.set()
    gateway.downloads.close()


def test_downloads_at_a_time_are_bounded_for_one_and_for_all(gateway: Shelf) -> None:
    """One trainer's cluster would take the gateway's memory and network from every other."""
    from contextlib import ExitStack

    with ExitStack() as open_places:
        for _ in range(DOWNLOADS_OF_ONE_MAX):
            open_places.enter_context(gateway.downloads.slot("one"))
        with pytest.raises(Problem) as of_one, gateway.downloads.slot("one"):
            pass
        for number in range(DOWNLOADS_MAX - DOWNLOADS_OF_ONE_MAX):
            open_places.enter_context(gateway.downloads.slot(f"other-{number}"))
        with pytest.raises(Problem) as of_all, gateway.downloads.slot("two"):
            pass
    with gateway.downloads.slot("one"):
        pass

    assert (of_one.value.status, of_all.value.status) == (429, 503)
