"""`consentry bundle …`: build a signed bundle, verify one, look into it, compare two; make the
keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
from consentry.bundles.diff import compare
from consentry.bundles.keys import make_key_files
from consentry.bundles.manifest import BUNDLE_ID_PATTERN, manifest_bytes
from consentry.cli.connections import open_catalog
from consentry.cli.settings import load_settings
from consentry.domain.wording import date_text
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings

EXIT_REFUSED = 1
EXIT_DIFFERENT = 1

app = typer.Typer(
    name="bundle",
    help="Build, verify, inspect and compare signed bundles.",
    no_args_is_help=True,
    add_completion=False,
)
keys_app = typer.Typer(
    name="keys", help="Make the keys that bundles are signed with.", no_args_is_help=True
)
app.add_typer(keys_app)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]
BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="A store, for its newest bundle, or STORE/BUNDLE-ID for one of them."
    ),
]
KeysOption = Annotated[
    list[Path],
    typer.Option("--key", help="File with public keys that are believed; may be repeated."),
]
NamespaceOption = Annotated[
    str | None, typer.Option(help="Of which deployment it has to be; else that of the settings.")
]


@keys_app.command()
def init(
    file: Annotated[
        Path,
        typer.Argument(help="Where to put the private key; the public one goes beside it, .pub."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a signing key: a private file and a public one.

    The private file is for the bundler alone, the public one for every reader. To change keys:
    make a new key, give readers both public keys, then let the bundler sign with the new one.
    """

    private, public, key_id = make_key_files(file)
    if as_json:
        typer.echo(json.dumps({"private": str(private), "public": str(public), "key_id": key_id}))
    else:
        typer.echo(f"made the key {key_id}: {private} signs, {public} is for readers")


@app.command()
def build(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Directory or URL of any fsspec store.")
    ],
    key: Annotated[Path, typer.Option(help="File of the private key.")],
    delta: Annotated[
        bool, typer.Option("--delta", help="Only what changed since the newest bundle.")
    ] = False,
    believe: Annotated[
        list[Path] | None,
        typer.Option(help="Public keys that earlier bundles are signed with; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build one bundle and make it the newest of the store.

    It reads records, controls and frontiers to the end that they have at the start.
    """
    from consentry.bundler.build import build as build_bundle  # noqa: PLC0415 - needs the extra bundler

    signing = SigningKey.read(key)
    settings = load_settings()
    manifest = build_bundle(
        BundleStore(store),
        settings.kafka(),
        open_catalog(settings),
        key=signing,
        namespace=settings.namespace,
        clock=system_clock,
        is_delta=delta,
        believed=PublicKeys.read(*believe).and_of(signing) if believe else None,
    )
    if as_json:
        typer.echo(json.dumps(_summary(manifest)))
    else:
        typer.echo(
            f"published {manifest.bundle_id}: {manifest.members} members, {_size(manifest)} bytes"
        )


@app.command()
def verify(
    url: BundleArgument,
    key: KeysOption,
    namespace: NamespaceOption = None,
    max_age: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds since everything was proven fresh, at most."),
    ] = None,
    least_sequence: Annotated[
        int, typer.Option(min=0, help="Number of the newest bundle seen before.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle: its signatures, chain, files, and the digests of its records.

    Exit 0: it is true. 1: it is refused. 2: cannot tell.
    """

    keys = _keys(key)
    try:
        bundle = _open(url, keys, namespace, max_age_seconds=max_age, least_sequence=least_sequence)
        size = bundle.check_files()
        state = restore(bundle)
    except BundleRefused as refused:
        if as_json:
            typer.echo(json.dumps({"ok": False, "code": refused.code, "detail": refused.message}))
        else:
            typer.echo(f"REFUSED: {refused}", err=True)
        raise typer.Exit(EXIT_REFUSED) from None
    told = {
        "ok": True,
        **_summary(bundle.manifest),
        "bytes": size,
        "bundles": len(bundle.manifests),
    }
    if as_json:
        typer.echo(json.dumps(told))
        return
    chain = len(bundle.manifests) - 1
    typer.echo(
        f"true: {bundle.manifest.bundle_id}, {chain} deltas on its snapshot, {size} bytes, "
        f"{len(state)} members"
    )


@app.command()
def inspect(
    url: BundleArgument,
    key: KeysOption,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the manifest of a bundle.

    Its signature is checked; its files are not read.
    """

    bundle = _open(url, _keys(key), namespace)
    manifest = bundle.manifest
    if as_json:
        typer.echo(
            json.dumps(json.loads(manifest_bytes(manifest)) | {"manifest_sha256": manifest.sha256})
        )
        return
    for line in _lines(bundle):
        typer.echo(line)


@app.command()
def diff(
    before: BundleArgument,
    after: BundleArgument,
    key: KeysOption,
    namespace: NamespaceOption = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Name the members too, not only how many.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two bundles.

    Exit 0: they hold the same. 1: they differ. 2: cannot tell.
    """

    keys = _keys(key)
    found = compare(_open(before, keys, namespace), _open(after, keys, namespace))
    groups: dict[str, tuple[str, ...]] = {
        "added": found.added,
        "changed": found.changed,
        "removed": found.removed,
    }
    groups |= {
        f"newly excluded from {purpose}": some for purpose, some in found.newly_excluded.items()
    }
    groups |= {
        f"no longer excluded from {purpose}": some
        for purpose, some in found.no_longer_excluded.items()
    }
    if as_json:
        counts = {name: sorted(some) if ids else len(some) for name, some in groups.items()}
        typer.echo(
            json.dumps(
                counts
                | {
                    "controls added": found.controls_added,
                    "controls removed": found.controls_removed,
                }
            )
        )
    else:
        for name, some in groups.items():
            typer.echo(f"{len(some):>9}  {name}")
            for member in some if ids else ():
                typer.echo(f"           {member}")
        typer.echo(f"{found.controls_added:>9}  controls added")
        typer.echo(f"{found.controls_removed:>9}  controls removed")
    raise typer.Exit(0 if found.is_empty else EXIT_DIFFERENT)


def _keys(files: list[Path]) -> PublicKeys:
    return PublicKeys.read(*files)


def _open(url: str, keys: PublicKeys, namespace: str | None, **options: Any) -> Bundle:
    """The bundle that a URL names: the newest one of a store, or the one whose id ends it."""
    store, bundle_id = _place(url)
    return open_bundle(
        store,
        keys=keys,
        namespace=namespace or Settings.parse().namespace,
        now=system_clock(),
        bundle_id=bundle_id,
        **options,
    )


def _place(url: str) -> tuple[BundleStore, str | None]:
    parent, _, name = url.rstrip("/").rpartition("/")
    if BUNDLE_ID_PATTERN.fullmatch(name):
        return BundleStore(parent or ("/" if url.startswith("/") else ".")), name
    return BundleStore(url), None


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files)


def _summary(manifest: Manifest) -> dict[str, Any]:
    """What a script asks first. Times as the manifest has them: microseconds since 1970-01-01
    UTC.
    """
    return {
        "bundle_id": manifest.bundle_id,
        "kind": manifest.kind,
        "sequence": manifest.sequence,
        "namespace": manifest.namespace,
        "created_at": manifest.created_at,
        "proven_at": manifest.proven_at,
        "members": manifest.members,
        "manifest_sha256": manifest.sha256,
    }


def _lines(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    proven = (
        date_text(manifest.proven_at)
        if manifest.proven_at
        else "never: some partition has no frontier"
    )
    damaged = sum(one.damaged for one in manifest.partitions)
    lines = [
        f"bundle      {manifest.bundle_id} (number {manifest.sequence} of {manifest.namespace})",
        f"made        {date_text(manifest.created_at)}, {len(bundle.manifests) - 1} deltas on its "
        "snapshot",
        f"proven      {proven}",
        f"manifest    {manifest.sha256}",
        f"members     {manifest.members} in {len(manifest.partitions)} partitions, {damaged} held "
        "as damaged",
        f"controls    {manifest.controls_count}, newest policy {manifest.newest_policy or 'none'}",
        f"purposes    {', '.join(manifest.purposes) or 'none'}",
    ]
    if manifest.tainted:
        lines.append(
            f"TAINTED     partitions {', '.join(map(str, sorted(manifest.tainted)))}: nobody in "
            "them is allowed"
        )
    lines += [
        f"{file.rows:>11} {file.role:<11} {file.size:>12} bytes  {file.name}"
        for file in manifest.files
    ]
    return lines
