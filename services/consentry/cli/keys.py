"""`consentry keys …`: make, list and revoke the API keys of the gateway."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from consentry.cli.options import JsonOption
from consentry.cli.settings import load_token_keys
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import Micros
from consentry.domain.wording import date_text, moment_of
from consentry.forms.fields import parse_duration
from consentry.gateway.access.key_file import FileKeyStore, load_pepper, make_pepper, replace_file
from consentry.gateway.access.keys import ApiKey, new_key
from consentry.gateway.access.roles import Role
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.wire.tokens import SECRET_BYTES_MIN

ANY_PURPOSE = "*"
NEVER = "never"
_SHORT_DURATION = re.compile(r"([1-9][0-9]{0,4})([hdw])", re.ASCII)

# FileKeyStore reads it back as no keys, and a test holds the two together.
_NO_KEYS = b'{"format": 1, "keys": []}\n'

app = typer.Typer(
    name="keys",
    help="Make, list and revoke the API keys of the gateway.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def init(as_json: JsonOption = False) -> None:
    """Make the secret files that a gateway needs to start, where they are missing.

    These are the pepper and a file of API keys, which is empty at first; also a first token key
    where CONSENTRY_TOKEN_KEYS_FILE names a file. Files that are there are checked and left as they
    are.
    """
    store, pepper_file, keys_file = _open()
    settings = Settings.parse()
    made: list[Path] = []
    # Beside keys of a pepper that is lost a new one would open nothing, and hide the loss.
    if not pepper_file.exists() and not (keys_file.exists() and store.all()):
        make_pepper(pepper_file)
        made.append(pepper_file)
    load_pepper(pepper_file)
    if _make_file(keys_file, _NO_KEYS):
        made.append(keys_file)
    store.all()
    files = [pepper_file, keys_file]
    if settings.token_keys_file is not None:
        files.append(settings.token_keys_file)
        if _make_file(
            settings.token_keys_file, f"1:{secrets.token_hex(SECRET_BYTES_MIN)}\n".encode("ascii")
        ):
            made.append(settings.token_keys_file)
        load_token_keys(settings)
    if as_json:
        entries = [{"file": str(file), "made": file in made} for file in files]
        typer.echo(json.dumps(entries))
        return
    for file in files:
        if file in made:
            typer.echo(f"made: {file}")
        else:
            typer.echo(f"was there: {file}")


@app.command()
def new(
    subject: Annotated[str, typer.Option(help="Service or person that the key is for.")],
    role: Annotated[
        list[str], typer.Option(help="producer, trainer, desk, approver or auditor; repeatable.")
    ],
    expires: Annotated[
        str, typer.Option(help="How long it is valid: 12h, 90d, 8w, or never.")
    ] = "90d",
    purpose: Annotated[
        list[str] | None,
        typer.Option(help="Purpose that a trainer may ask about; repeatable. '*' is any."),
    ] = None,
    subscriber: Annotated[
        str | None, typer.Option(help="Name of the subscriber, for a trainer.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key of the gateway, and print it this once.

    The key is printed on standard output, all else on standard error. A running gateway accepts it
    within five seconds. The first key also makes the files that the settings name.
    """
    store, pepper_file, keys_file = _open()
    now = system_clock()
    roles = _roles(role)
    purposes = _purposes(purpose or [], roles)
    ends = _end(expires, now)
    if not pepper_file.exists() and not keys_file.exists():
        make_pepper(pepper_file)
        typer.echo(
            f"Made the pepper {pepper_file}: a gateway needs the same one to accept the key.",
            err=True,
        )
    key, text = new_key(
        load_pepper(pepper_file),
        subject=subject,
        roles=roles,
        now=now,
        purposes=purposes,
        subscriber=subscriber,
        expires=ends,
    )
    store.add(key)
    typer.echo(_line(key, now), err=True)
    typer.echo(
        "Send it as `Authorization: Bearer …`. It is not stored and cannot be shown again.",
        err=True,
    )
    if as_json:
        typer.echo(json.dumps({**_shown(key, now), "key": text}))
    else:
        typer.echo(text)


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """Print the gateway's API keys without their secrets, the oldest first."""

    now = system_clock()
    keys = _open()[0].all()
    if as_json:
        entries = [_shown(key, now) for key in keys]
        typer.echo(json.dumps(entries))
        return
    for key in keys:
        typer.echo(_line(key, now))
    if not keys:
        typer.echo("there are no keys")


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The ten characters between the key's underscores.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Revoke an API key of the gateway. This cannot be undone: make a new one.

    A running gateway refuses it within five seconds.
    """

    now = system_clock()
    key = _open()[0].revoke(key_id, at=now)
    if as_json:
        typer.echo(json.dumps(_shown(key, now)))
    else:
        typer.echo(_line(key, now))


def _open() -> tuple[FileKeyStore, Path, Path]:
    """Return the store, and the files of pepper and keys.

    Raises Refused where the settings do not name them.
    """
    settings = Settings.parse()
    keys_file, pepper_file = settings.access_keys_file, settings.access_pepper_file
    if keys_file is None or pepper_file is None:
        raise Refused(
            "The settings do not name the files of the API keys and of their pepper.",
            code="access.keys_file_missing",
            fix="set CONSENTRY_ACCESS_KEYS_FILE and CONSENTRY_ACCESS_PEPPER_FILE, as for the "
            "gateway",
        )
    return FileKeyStore(keys_file), pepper_file, keys_file


def _make_file(path: Path, content: bytes) -> bool:
    """Write a file for its owner alone if there is none; return True if it was written.

    Raises Refused.
    """

    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        if path.exists():
            return False
        replace_file(beside, content)
        try:
            # Unlike a rename a link never takes the place of what somebody else wrote meanwhile.
            os.link(beside, path)
        finally:
            beside.unlink()
    except FileExistsError:
        return False
    except OSError as error:
        raise Refused(
            f"The file {str(path)!r} cannot be written ({type(error).__name__}).",
            code="access.keys_unwritable",
            fix="run the command as the user who owns the file and its directory",
        ) from error
    return True


def _roles(words: list[str]) -> list[Role]:
    try:
        return [Role(word) for word in words]
    except ValueError as error:
        raise InvalidInput(
            f"One of the roles {', '.join(words)[:200]!r} does not exist.",
            code="access.roles",
            fix=f"give one or more of {', '.join(Role)}",
        ) from error


def _purposes(purposes: list[str], roles: list[Role]) -> frozenset[str] | None:
    """Return the purposes that the key may ask about; None is any, by '*' or for no trainer."""

    is_trainer = Role.TRAINER in roles
    if is_trainer and ANY_PURPOSE in purposes:
        return None
    if is_trainer or purposes:
        return frozenset(purposes)
    return None


def _end(expires: str, now: Micros) -> Micros | None:
    if expires == NEVER:
        return None
    short = _SHORT_DURATION.fullmatch(expires)
    if short is None:
        raise InvalidInput(
            f"{expires[:40]!r} is no time for which a key can be valid.",
            code="access.key_expires",
            fix="write 12h, 90d, 8w or never",
        )
    number, unit = short[1], short[2].upper()
    iso = f"P{number}{unit}"
    if unit == "H":
        iso = f"PT{number}H"
    return Micros(now + parse_duration(iso, what="--expires"))


def _shown(key: ApiKey, now: Micros) -> dict[str, Any]:
    def moment(instant: Micros | None) -> str | None:
        if instant is None:
            return None
        return moment_of(instant).isoformat()

    purposes = None
    if key.purposes is not None:
        purposes = sorted(key.purposes)
    return {
        "id": key.id,
        "subject": key.subject,
        "roles": sorted(key.roles),
        "purposes": purposes,
        "subscriber": key.subscriber,
        "created": moment(key.created),
        "expires": moment(key.expires),
        "revoked": moment(key.revoked),
        "state": _state(key, now),
    }


def _state(key: ApiKey, now: Micros) -> str:
    if key.revoked is not None:
        return "revoked"
    if key.is_valid(now):
        return "valid"
    return "expired"


def _line(key: ApiKey, now: Micros) -> str:
    """Return a key as one line: id, state, subject, roles, and expiry."""
    parts = [key.id, f"{_state(key, now):7}", key.subject, "+".join(sorted(key.roles))]
    if Role.TRAINER in key.roles:
        purposes = ANY_PURPOSE
        if key.purposes is not None:
            purposes = ",".join(sorted(key.purposes))
        parts.append(f"purposes {purposes}")
    if key.subscriber is not None:
        parts.append(f"subscriber {key.subscriber}")
    if key.expires is None:
        parts.append("never expires")
    else:
        parts.append(f"expires {date_text(key.expires)}")
    if key.revoked is not None:
        parts.append(f"revoked {date_text(key.revoked)}")
    return "  ".join(parts)
