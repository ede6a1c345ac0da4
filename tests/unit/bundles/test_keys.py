"""Keys of bundles: made for their owner only, changed without a gap, never shown."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest

from consentry.bundles import PublicKeys, SigningKey
from consentry.bundles.keys import make_key_files
from consentry.domain.errors import InvalidInput, Refused, UnsafeSetting


def test_a_key_that_was_made_signs_and_its_public_half_verifies(tmp_path: Path) -> None:
    """The two files are all that an operator has."""
    private, public, key_id = make_key_files(tmp_path / "bundles.key")
    key, keys = SigningKey.read(private), PublicKeys.read(public)
    assert key_id == key.key_id
    assert key_id in keys
    assert len(keys) == 1
    assert keys.verifies(key_id, key.sign(b"content"), b"content")
    assert not keys.verifies(key_id, key.sign(b"content"), b"contenT")


def test_the_private_file_is_for_its_owner_alone_and_the_public_one_for_all(tmp_path: Path) -> None:
    """Who can read it can have anybody trained on."""
    private, public, _ = make_key_files(tmp_path / "bundles.key")
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.stat().st_mode & 0o644 == 0o644
    assert b"PRIVATE" not in public.read_bytes()


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    """Bundles signed with it could not be verified any more, and nobody could go on with it."""
    private, public, _ = make_key_files(tmp_path / "bundles.key")
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(Refused, match=r"bundle\.key_exists"):
        make_key_files(tmp_path / "bundles.key")
    assert (private.read_bytes(), public.read_bytes()) == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """It may have been copied already."""
    private, _, _ = make_key_files(tmp_path / "bundles.key")
    private.chmod(mode)
    with pytest.raises(UnsafeSetting, match="chmod 600"):
        SigningKey.read(private)


def test_several_public_keys_may_stand_in_one_file_or_in_several(tmp_path: Path) -> None:
    """While a key is being changed readers believe the old and the new one."""
    made = [make_key_files(tmp_path / name) for name in ("old", "new")]
    publics = [public for _, public, _ in made]
    both = tmp_path / "both.pub"
    both.write_bytes(b"".join(path.read_bytes() for path in publics))
    for keys in (PublicKeys.read(both), PublicKeys.read(*publics)):
        assert len(keys) == 2
        assert all(key_id in keys for _, _, key_id in made)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"\xff\x00",
    ],
)
def test_a_file_without_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """Believing nobody by mistake looks like an attack; believing anybody is one."""
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match=r"bundle\.key"):
        PublicKeys.read(path)
    with pytest.raises(InvalidInput, match=r"bundle\.key"):
        SigningKey.read(path)
    with pytest.raises(InvalidInput, match=r"bundle\.key"):
        PublicKeys.read(tmp_path / "absent")


def test_a_private_key_given_as_the_public_one_is_refused_and_not_shown(tmp_path: Path) -> None:
    """It would be copied to every trainer."""
    private, _, _ = make_key_files(tmp_path / "bundles.key")
    with pytest.raises(InvalidInput) as refused:
        PublicKeys.read(private)
    secret = private.read_text().splitlines()[1]
    assert secret not in str(refused.value)
    assert refused.value.__cause__ is None


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    """Only what signatures are made with can verify them."""
    path = tmp_path / "rsa"
    made = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-out", str(path)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    if made.returncode:
        pytest.skip("there is no openssl on this machine")  # it makes the key of another kind
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match="private"):
        SigningKey.read(path)


def test_a_signing_key_shows_only_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """Objects end in logs and tracebacks."""
    key = SigningKey.generate()
    logging.getLogger("test").warning("%r %s %s", key, key, {"key": key})
    secret = key.private_text().decode().splitlines()[1]
    assert key.key_id in caplog.text
    assert secret not in caplog.text
    assert "PRIVATE" not in caplog.text
