"""`consentry bundle …`: build, verify, inspect, compare signed bundles, and make their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from consentry.cli.options import JsonOption
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

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="STORE for its newest bundle, or STORE/BUNDLE-ID for another one."
    ),
]
KeysOption = Annotated[
    list[Path],
    typer.Option(
        "--key", help="File of public keys that the bundle may be signed with; repeatable."
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(help="Namespace that the bundle has to be of; default: that of the settings."),
]


@keys_app.command()
def init(
    file: Annotated[
        Path,
        typer.Argument(
            help="Where to put the private key. The public one goes beside it, with .pub."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a signing key for bundles, and print where its two files are.

    Those are a private file and a public one. The private file is for the bundler alone, the public
    one for every reader. To change keys: make a new key, give readers both public keys, then let
    the bundler sign with the new one.
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
        typer.Option(help="File of public keys that earlier bundles are signed with; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build one bundle from Kafka as a command, and make it the newest of the store.

    It reads records, controls and frontiers to the end that they have at the start.
    """
    from consentry.bundler.build import build as build_bundle  # noqa: PLC0415 - needs the extra bundler

    signing = SigningKey.read(key)
    settings = load_settings()
    bundle_store = BundleStore(store)
    kafka = settings.kafka()
    catalog = open_catalog(settings)
    believed = None
    if believe:
        believed = PublicKeys.read(*believe).and_of(signing)
    manifest = build_bundle(
        bundle_store,
        kafka,
        catalog,
        key=signing,
        namespace=settings.namespace,
        clock=system_clock,
        is_delta=delta,
        believed=believed,
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
        typer.Option(min=0, help="Seconds since all of it was proven fresh, at most."),
    ] = None,
    least_sequence: Annotated[
        int,
        typer.Option(
            min=0, help="Number of the newest bundle that you have seen: an older one is refused."
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle's signatures, chain, files and digests; print the result.

    The digests are those of its records. Exit 0: it is true. 1: it is refused. 2: cannot tell.
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
    report = {
        "ok": True,
        **_summary(bundle.manifest),
        "bytes": size,
        "bundles": len(bundle.manifests),
    }
    if as_json:
        typer.echo(json.dumps(report))
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
    """Print the manifest of a bundle.

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
        bool, typer.Option("--ids", help="Also name the members, not only how many they are.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two bundles, and print the differences.

    Exit 0: they hold the same. 1: they differ. 2: cannot tell.
    """

    keys = _keys(key)
    difference = compare(_open(before, keys, namespace), _open(after, keys, namespace))
    groups: dict[str, tuple[str, ...]] = {
        "added": difference.added,
        "changed": difference.changed,
        "removed": difference.removed,
    }
    for purpose, members in difference.newly_excluded.items():
        groups[f"newly excluded from {purpose}"] = members
    for purpose, members in difference.no_longer_excluded.items():
        groups[f"no longer excluded from {purpose}"] = members
    controls = {
        "controls added": difference.controls_added,
        "controls removed": difference.controls_removed,
    }
    if as_json:
        fields: dict[str, Any] = {}
        for name, members in groups.items():
            if ids:
                fields[name] = sorted(members)
            else:
                fields[name] = len(members)
        typer.echo(json.dumps(fields | controls))
    else:
        _print_groups(groups, controls, ids=ids)
    if difference.is_empty:
        raise typer.Exit(0)
    raise typer.Exit(EXIT_DIFFERENT)


def _print_groups(
    groups: Mapping[str, Sequence[str]], controls: Mapping[str, int], *, ids: bool
) -> None:
    for name, members in groups.items():
        typer.echo(f"{len(members):>9}  {name}")
        if ids:
            for member in members:
                typer.echo(f"           {member}")
    for name, count in controls.items():
        typer.echo(f"{count:>9}  {name}")


def _keys(files: list[Path]) -> PublicKeys:
    return PublicKeys.read(*files)


def _open(url: str, keys: PublicKeys, namespace: str | None, **options: Any) -> Bundle:
    """Open the bundle that a URL names: the newest of a store, or the one whose id ends the URL."""
    store, bundle_id = _parse_url(url)
    return open_bundle(
        store,
        keys=keys,
        namespace=namespace or Settings.parse().namespace,
        now=system_clock(),
        bundle_id=bundle_id,
        **options,
    )


def _parse_url(url: str) -> tuple[BundleStore, str | None]:
    parent, _, name = url.rstrip("/").rpartition("/")
    if not BUNDLE_ID_PATTERN.fullmatch(name):
        return BundleStore(url), None
    if parent:
        return BundleStore(parent), name
    if url.startswith("/"):
        return BundleStore("/"), name
    return BundleStore("."), name


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files)


def _summary(manifest: Manifest) -> dict[str, Any]:
    """Return what a script needs first. Times are microseconds since 1970-01-01 UTC."""
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
    proven = "never: some partition has no frontier"
    if manifest.proven_at:
        proven = date_text(manifest.proven_at)
    damaged = sum(partition.damaged for partition in manifest.partitions)
    lines = [
        f"bundle      {manifest.bundle_id} (number {manifest.sequence} of {manifest.namespace})",
        f"made        {date_text(manifest.created_at)}, {len(bundle.manifests) - 1} deltas on its "
        "snapshot",
        f"proven      {proven}",
        f"manifest    {manifest.sha256}",
        f"members     {manifest.members} in {len(manifest.partitions)} partitions, {damaged} "
        "quarantined as damaged",
        f"controls    {manifest.controls_count}, newest policy {manifest.newest_policy or 'none'}",
        f"purposes    {', '.join(manifest.purposes) or 'none'}",
    ]
    if manifest.tainted:
        lines.append(
            f"TAINTED     partitions {', '.join(map(str, sorted(manifest.tainted)))}: nobody in "
            "them is allowed"
        )
    for file in manifest.files:
        lines.append(f"{file.rows:>11} {file.role:<11} {file.size:>12} bytes  {file.name}")
    return lines
