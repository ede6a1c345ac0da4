"""`consentry keys …`: the key is shown once and on standard output alone; everything else shows no
secret.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from consentry.cli.keys import _make_file, app
from consentry.domain.errors import ConsentryError
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.key_file import FileKeyStore, load_pepper
from consentry.gateway.access.keys import ApiKeyScheme
from consentry.gateway.access.roles import Principal, Role
from consentry.gateway.access.setup import AccessSettings, open_authenticator
from consentry.ops.clock import system_clock
from consentry.wire.tokens import TokenKeys


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the settings say that keys and pepper are."""
    monkeypatch.setenv("CONSENTRY_ACCESS_KEYS_FILE", str(tmp_path / "keys.json"))
    monkeypatch.setenv("CONSENTRY_ACCESS_PEPPER_FILE", str(tmp_path / "pepper"))
    return tmp_path


def run(*arguments: str) -> Result:
    """What `consentry keys` does with these words."""
    return CliRunner().invoke(app, arguments)


def refused(*arguments: str) -> ConsentryError:
    """The error that the command line then shows."""
    error = run(*arguments).exception
    assert isinstance(error, ConsentryError)
    return error


def verify(files: Path, text: str) -> Principal:
    """Whom a gateway with the same files takes the key for."""
    store = FileKeyStore(files / "keys.json")
    store.renew()
    return ApiKeyScheme(store, load_pepper(files / "pepper"), system_clock).verify(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_what_a_gateway_needs_to_start_and_nobody_else_can_read(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the files a gateway does not start; were they open to others it would refuse them."""
    monkeypatch.setenv("CONSENTRY_TOKEN_KEYS_FILE", str(files / "token-keys"))
    before = os.umask(0)  # the mode must not hang on who calls
    try:
        result = run("init")
    finally:
        os.umask(before)

    assert result.exit_code == 0, result.output
    settings = AccessSettings(keys_file=files / "keys.json", pepper_file=files / "pepper")
    open_authenticator(settings, bind_host="192.0.2.1", profile="production")
    assert FileKeyStore(files / "keys.json").all() == ()
    assert TokenKeys.parse((files / "token-keys").read_text()).signing == 1
    assert {path.name: mode(path) for path in files.iterdir()} == {
        "keys.json": 0o600, "pepper": 0o600, "token-keys": 0o600,
    }  # fmt: skip


def test_init_shows_no_secret(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output is in the log of a container."""
    monkeypatch.setenv("CONSENTRY_TOKEN_KEYS_FILE", str(files / "token-keys"))

    shown = run("init").output + run("init", "--json").output

    assert (files / "token-keys").read_text().strip().partition(":")[2] not in shown
    assert (files / "pepper").read_bytes().hex() not in shown


def test_init_makes_no_token_keys_where_none_are_named(files: Path) -> None:
    """A secret that nobody reads is one more to lose."""
    run("init")

    assert {path.name for path in files.iterdir()} == {"keys.json", "pepper"}


def test_a_second_init_changes_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs before every start of the stack: a new pepper would shut out every
    service.
    """
    monkeypatch.setenv("CONSENTRY_TOKEN_KEYS_FILE", str(files / "token-keys"))
    first = json.loads(run("init", "--json").stdout)
    key = run("new", "--subject", "billing", "--role", "producer").stdout.strip()
    before = {path.name: path.read_bytes() for path in files.iterdir()}

    second = json.loads(run("init", "--json").stdout)

    assert [one["made"] for one in first] == [True, True, True]
    assert [one["made"] for one in second] == [False, False, False]
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before
    assert verify(files, key).subject == "billing"


def test_an_init_that_was_broken_off_is_finished_by_the_next(files: Path) -> None:
    """A container may be ended between two files."""
    run("init")
    (files / "keys.json").unlink()

    assert run("init").exit_code == 0
    assert FileKeyStore(files / "keys.json").all() == ()

    (files / "pepper").unlink()  # lost with no key made yet: nothing is lost

    assert run("init").exit_code == 0
    load_pepper(files / "pepper")


def test_init_makes_no_new_pepper_beside_old_keys(files: Path) -> None:
    """Then every key would be dead, and nobody told."""
    run("new", "--subject", "billing", "--role", "producer")
    (files / "pepper").unlink()

    assert refused("init").code == "access.pepper_unreadable"
    assert not (files / "pepper").exists()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("keys.json", "{", "access.keys_unreadable"),
        ("pepper", "short", "access.pepper_short"),
        ("token-keys", "1:short", "token.keys"),
    ],
)
def test_init_says_what_the_gateway_would_not_take(
    files: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, code: str
) -> None:
    """It is the first to run: what it does not say is found when the gateway does not start, and is
    left as it is.
    """
    monkeypatch.setenv("CONSENTRY_TOKEN_KEYS_FILE", str(files / "token-keys"))
    (files / name).write_text(content)
    (files / name).chmod(0o600)

    assert refused("init").code == code
    assert (files / name).read_text() == content


def test_init_into_a_folder_that_is_not_there_is_refused(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error in a path should not end in a traceback."""
    for name in ("ACCESS_KEYS_FILE", "ACCESS_PEPPER_FILE"):
        monkeypatch.setenv(f"CONSENTRY_{name}", str(files / "gone" / name))

    assert refused("init").code == "access.keys_unwritable"


def test_init_leaves_the_keys_that_somebody_else_made_meanwhile(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers may start at once; the file of one must not take the place of the other's
    first key.
    """
    monkeypatch.setattr(Path, "exists", lambda path: False)  # as both saw it
    (files / "keys.json").write_text("theirs")

    assert _make_file(files / "keys.json", b"ours") is False
    assert (files / "keys.json").read_text() == "theirs"
    assert [path.name for path in files.iterdir()] == ["keys.json"]


def test_a_new_key_opens_the_gateway_and_is_alone_on_standard_output(files: Path) -> None:
    """It is piped into a secret store; a word more and the secret is another."""
    result = run("new", "--subject", "billing", "--role", "producer")

    assert result.exit_code == 0, result.output
    key = result.stdout.strip()
    assert verify(files, key).roles == {Role.PRODUCER}
    assert key not in result.stderr
    assert key[14:] not in result.stderr
    assert "cannot be shown again" in result.stderr


def test_a_trainers_key_has_the_purposes_and_the_subscriber_that_were_said(files: Path) -> None:
    """What narrows it must not get lost between the words and the file."""
    result = run(
        *(
            "new",
            "--subject",
            "ranker",
            "--role",
            "trainer",
            "--purpose",
            "ads",
            "--purpose",
            "ranking",
        ),
        *("--subscriber", "ranker", "--expires", "12h", "--json"),
    )

    shown = json.loads(result.stdout)
    found = verify(files, shown["key"])
    assert (found.purposes, found.subscriber) == (frozenset({"ads", "ranking"}), "ranker")
    assert shown["purposes"] == ["ads", "ranking"]
    assert shown["state"] == "valid"


def test_any_purpose_has_to_be_said(files: Path) -> None:
    """A forgotten option must not open every purpose."""
    assert refused("new", "--subject", "r", "--role", "trainer").code == "access.purposes"
    assert (
        verify(
            files,
            run("new", "--subject", "r", "--role", "trainer", "--purpose", "*").stdout.strip(),
        ).purposes
        is None
    )


def test_the_list_shows_no_secret_and_the_state_of_each(files: Path) -> None:
    """It is pasted into tickets."""
    first = json.loads(run("new", "--subject", "billing", "--role", "producer", "--json").stdout)
    second = json.loads(
        run(
            "new",
            "--subject",
            "ada",
            "--role",
            "desk",
            "--role",
            "approver",
            "--expires",
            "never",
            "--json",
        ).stdout
    )
    assert run("revoke", first["id"]).exit_code == 0

    listed, shown = run("list"), json.loads(run("list", "--json").stdout)

    assert [(key["id"], key["state"]) for key in shown] == [
        (first["id"], "revoked"),
        (second["id"], "valid"),
    ]
    assert "digest" not in shown[0]
    for key in (first, second):
        assert key["id"] in listed.stdout
        assert key["key"][14:] not in listed.output
        assert (
            json.loads((files / "keys.json").read_text())["keys"][0]["digest"] not in listed.output
        )


def test_a_revoked_key_opens_nothing(files: Path) -> None:
    """The first thing to do about a stolen key."""
    key = json.loads(run("new", "--subject", "billing", "--role", "producer", "--json").stdout)

    assert "revoked" in run("revoke", key["id"]).stdout

    with pytest.raises(BadCredential):
        verify(files, key["key"])


def test_a_key_pasted_instead_of_its_id_is_not_repeated() -> None:
    """The error goes to a terminal that others see."""
    key = run("new", "--subject", "billing", "--role", "producer").stdout.strip()

    assert key[14:] not in str(refused("revoke", key))


def test_a_second_key_has_the_same_pepper(files: Path) -> None:
    """A new pepper would shut out every other service."""
    first = run("new", "--subject", "billing", "--role", "producer").stdout.strip()
    run("new", "--subject", "other", "--role", "producer")

    assert verify(files, first).subject == "billing"


def test_no_new_pepper_is_made_beside_old_keys(files: Path) -> None:
    """Then every key would be dead, and nobody told."""
    run("new", "--subject", "billing", "--role", "producer")
    (files / "pepper").unlink()

    assert (
        refused("new", "--subject", "other", "--role", "producer").code
        == "access.pepper_unreadable"
    )
    assert not (files / "pepper").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--subject", "b", "--role", "king"), "access.roles"),
        (("--subject", "a b", "--role", "desk"), "access.subject"),
        (("--subject", "b", "--role", "desk", "--purpose", "ads"), "access.purposes"),
        (("--subject", "b", "--role", "trainer", "--purpose", "Not A Name"), "input.purpose"),
        (("--subject", "b", "--role", "desk", "--expires", "0d"), "access.key_expires"),
        (("--subject", "b", "--role", "desk", "--expires", "soon"), "access.key_expires"),
        (("--subject", "b", "--role", "desk", "--expires", "-1d"), "access.key_expires"),
    ],
)
def test_what_a_key_cannot_be_is_refused(files: Path, words: tuple[str, ...], code: str) -> None:
    """A typing error must not become a key that does something else."""
    assert refused("new", *words).code == code
    assert not (files / "keys.json").exists()


def test_without_settings_it_says_which_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody should have to guess where a secret ends up."""
    monkeypatch.delenv("CONSENTRY_ACCESS_PEPPER_FILE")

    assert "CONSENTRY_ACCESS_PEPPER_FILE" in str(refused("list"))
