"""An OpenID Connect issuer on loopback: real keys, a key set over HTTP, and tokens as honest or
forged as wanted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from jwt.algorithms import get_default_algorithms

AUDIENCE = "https://consentry.example"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key by a name of the test's own, made once."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    """An Ed25519 key."""
    return ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: PrivateKey, algorithm: str, **more: Any) -> dict[str, Any]:
    """The JSON Web Key that an issuer publishes of a key."""
    found = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
    return {**found, **more}


def public_pem(key: PrivateKey) -> bytes:
    """The public key as people paste it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encoded(part: bytes | str | dict[str, Any]) -> str:
    """A part of a token: bytes and text as they are, an object as JSON."""
    content = json.dumps(part, separators=(",", ":")) if isinstance(part, dict) else part
    raw = content.encode() if isinstance(content, str) else content
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(part: str) -> bytes:
    """The bytes of a part of a token."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def signed(
    header: bytes | str | dict[str, Any],
    payload: bytes | str | dict[str, Any],
    key: PrivateKey | bytes,
    algorithm: str,
) -> str:
    """A token of exactly these bytes, with a signature that is right for them."""
    signing_input = f"{encoded(header)}.{encoded(payload)}"
    how = get_default_algorithms()[algorithm]
    if isinstance(key, bytes):
        # PyJWT itself refuses a public key as the secret of an HMAC; a forger does not.
        signature = hmac.digest(key, signing_input.encode(), hashlib.sha256)
    else:
        signature = how.sign(signing_input.encode(), key)
    return f"{signing_input}.{encoded(signature)}"


@dataclass
class Issuer:
    """What the issuer serves, and what it was asked. `url` is its address on loopback."""

    url: str
    algorithm: str = "RS256"
    keys: dict[str, PrivateKey] = field(default_factory=dict)
    body: bytes | None = None
    status: int = 200
    location: str | None = None
    requests: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def key_set(self) -> bytes:
        """The key set as served."""
        if self.body is not None:
            return self.body
        keys = [
            public_jwk(key, self.algorithm, kid=name, use="sig") for name, key in self.keys.items()
        ]
        return json.dumps({"keys": keys}).encode()

    def header(self, **changes: Any) -> dict[str, Any]:
        """An honest header with changes; `...` leaves a parameter out."""
        return _changed(
            {"alg": self.algorithm, "typ": "at+jwt", "kid": next(iter(self.keys), "k1")}, changes
        )

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Honest claims with changes; `...` leaves a claim out."""
        now = int(time.time())
        honest = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "roles": ["desk"],
        }
        return _changed(honest, changes)

    def token(
        self, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None
    ) -> str:
        """A token as the issuer signs it, but for these changes."""
        made = self.header(**(header or {}))
        key = self.keys.get(str(made.get("kid"))) or next(iter(self.keys.values()))
        return signed(made, self.claims(**(claims or {})), key, self.algorithm)


def _changed(honest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**honest, **changes}.items() if value is not ...}


def certificate_for_loopback(directory: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that vouches for itself."""
    key, now = ec_key("tls"), datetime.now(tz=UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    path = directory / "tls.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return path


@contextmanager
def running_issuer(
    algorithm: str = "RS256", *, tls: Path | None = None, **keys: PrivateKey
) -> Iterator[Issuer]:
    """An issuer that answers until the block ends; over TLS with a file of key and certificate."""
    issuer = Issuer("", algorithm, dict(keys))
    issuer.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            issuer.gate.wait(30)
            body = issuer.key_set()
            self.send_response(issuer.status)
            if issuer.location is not None:
                self.send_header("Location", issuer.location)
            self.send_header("Content-Length", str(len(body)))
            with suppress(
                ConnectionError
            ):  # a client that gave up waiting is what some tests are about
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # A client that does not trust us hangs up in the middle: what some tests are about, and no
    # news.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    issuer.url = f"http{'' if tls is None else 's'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
