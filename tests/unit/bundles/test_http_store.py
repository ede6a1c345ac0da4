"""Bundles by HTTP: whole or not at all, and the credential goes nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from consentry.bundles import BundleStore
from consentry.bundles.http_store import HttpBundleStore, open_store
from consentry.bundles.store import NotThere
from consentry.domain.errors import Refused, Unavailable

BUNDLE = "0000000001-snapshot-0123456789abcdef"


class Place:
    """A server that answers as it is told, and notes what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b"content"
        self.announced: int | None = None
        self.asked: list[tuple[str, dict[str, str]]] = []
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place.asked.append(
                    (self.path, {name.lower(): text for name, text in self.headers.items()})
                )
                self.send_response(place.status)
                for name, text in place.headers.items():
                    self.send_header(name, text)
                length = len(place.body) if place.announced is None else place.announced
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(place.body)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/bundles"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_file_is_read_at_its_place_with_the_credential(place: Place) -> None:
    """A gateway that does not know who asks hands out nothing."""
    store = HttpBundleStore(place.url, credential="ck_secret")

    assert store.read(BUNDLE, "records-00000.parquet", bytes_max=100) == b"content"
    assert store.read(BUNDLE, "..%2f", bytes_max=3) == b"cont", (
        "one byte more than asked, as every store"
    )

    paths = [path for path, _ in place.asked]
    assert paths == [f"/v1/bundles/{BUNDLE}/records-00000.parquet", f"/v1/bundles/{BUNDLE}/..%252f"]
    assert place.asked[0][1]["authorization"] == "Bearer ck_secret"
    assert "secret" not in repr(store)


def test_the_pointer_is_fetched_again_only_when_it_changed(place: Place) -> None:
    """A thousand trainers ask every few seconds."""
    store = HttpBundleStore(place.url)
    place.headers, place.body = {"ETag": '"1"'}, b"first"
    assert store.read("latest.jsonl", bytes_max=100) == b"first"
    place.status, place.body = 304, b""

    assert store.read("latest.jsonl", bytes_max=100) == b"first"
    place.status, place.body, place.headers = 200, b"second", {"ETag": '"2"'}
    assert store.read("latest.jsonl", bytes_max=100) == b"second"

    assert [headers.get("if-none-match") for _, headers in place.asked] == [None, '"1"', '"1"']


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (401, Refused, "bundle.forbidden"),
        (403, Refused, "bundle.forbidden"),
        (304, Unavailable, "bundle.store_unavailable"),
        (302, Unavailable, "bundle.store_unavailable"),
        (429, Unavailable, "bundle.store_unavailable"),
        (500, Unavailable, "bundle.store_unavailable"),
        (503, Unavailable, "bundle.store_unavailable"),
    ],
)
def test_what_is_no_file_is_never_taken_for_one(
    place: Place, status: int, error: type[Refused] | type[Unavailable], code: str
) -> None:
    """The text of an error page would be read as a bundle, or a redirect take the credential to
    another machine.
    """
    place.status, place.headers = status, {"Location": "http://127.0.0.1:9/"}

    with pytest.raises(error) as caught:
        HttpBundleStore(place.url, credential="ck_secret").read(
            BUNDLE, "manifest.json", bytes_max=100
        )

    assert caught.value.code == code
    assert len(place.asked) == 1, "nobody was followed"
    assert "ck_secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_told_as_every_store_tells_it(place: Place) -> None:
    """The reader has its own words for a bundle that was deleted meanwhile."""
    place.status = 404

    with pytest.raises(NotThere):
        HttpBundleStore(place.url).read(BUNDLE, "manifest.json", bytes_max=100)


def test_a_connection_that_ends_too_soon_is_no_shorter_file(place: Place) -> None:
    """Half of the opt-outs would look like all of them until the digest is compared."""
    place.announced = 1000

    with pytest.raises(Unavailable):
        HttpBundleStore(place.url, timeout_seconds=1).read(
            BUNDLE, "manifest.json", bytes_max=10_000
        )


def test_a_gateway_that_is_silent_is_given_up(place: Place) -> None:
    """A trainer that waits for ever at its start looks like one that loads."""
    place.server.shutdown()
    place.server.server_close()

    with pytest.raises(Unavailable):
        HttpBundleStore(place.url, timeout_seconds=0.5).read(BUNDLE, "manifest.json", bytes_max=100)


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway/v1/bundles", "https://user:secret@gateway/v1/bundles", "https:///x", "ftp://gateway/x",
        "https://gateway/v1/bundles?key=secret", "file:///etc", "https://gateway/#secret",
    ],
)  # fmt: skip
def test_a_place_that_would_show_the_credential_is_refused(url: str) -> None:
    """In the open on a network, or in the logs of every proxy, a key is everybody's."""
    with pytest.raises(Refused) as caught:
        HttpBundleStore(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("credential", ["ck_a\nX-Other: b", "ck a", "é"])
def test_a_credential_that_would_break_the_header_is_refused_without_being_shown(
    credential: str,
) -> None:
    """A line break out of a secret's file would write headers of its own."""
    with pytest.raises(Refused) as caught:
        HttpBundleStore("https://gateway/v1/bundles", credential=credential)

    assert credential not in str(caught.value)


def test_behind_a_gateway_nothing_is_written() -> None:
    """A bundler that is given the address of a gateway has to say so, not lose its bundles."""
    store = HttpBundleStore("https://gateway/v1/bundles")

    for attempt in (
        lambda: store.write("latest.jsonl", content=b""),
        store.bundle_ids,
        lambda: store.remove(BUNDLE),
    ):
        with pytest.raises(Refused, match="read"):
            attempt()


def test_the_scheme_tells_which_store_it_is(tmp_path: object) -> None:
    """One setting names the place, wherever it is."""
    assert isinstance(open_store("https://gateway/v1/bundles"), HttpBundleStore)
    assert not isinstance(open_store(str(tmp_path)), HttpBundleStore)
    assert isinstance(open_store(str(tmp_path)), BundleStore)
