"""The arguments and options that several commands of `consentry` share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MemberArgument = Annotated[str, typer.Argument(help="Pseudonym of the member.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
PurposeOption = Annotated[str, typer.Option(help="What the data is used for.")]
EffectiveOption = Annotated[
    str | None, typer.Option(help="When it takes effect, in ISO 8601; default: now.")
]

MemberColumnOption = Annotated[
    str | None, typer.Option("--member-col", help="Column of member ids; default: member_id.")
]
JurisdictionColumnOption = Annotated[
    str | None,
    typer.Option(
        "--jurisdiction-col",
        help="Column of jurisdictions; default: jurisdiction, if there is such a column.",
    ),
]
CategoryColumnOption = Annotated[
    str | None,
    typer.Option(
        "--category-col",
        help="Column of data categories; default: category, if there is such a column.",
    ),
]
CollectedColumnOption = Annotated[
    str | None,
    typer.Option(
        "--collected-col",
        help="Column of collection times; default: collected_at, if there is such a column.",
    ),
]

BundleOption = Annotated[
    str | None,
    typer.Option(
        metavar="STORE", help="Take members from the newest bundle of this store, not from Kafka."
    ),
]
BundleKeyOption = Annotated[
    Path | None, typer.Option(help="File of the public key that the bundle is signed with.")
]
BundleKeysOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--bundle-key", help="File of the bundler's public keys, never the signer's; repeatable."
    ),
]
BelieveOption = Annotated[
    list[Path] | None,
    typer.Option(help="File of public keys that earlier bundles are signed with; repeatable."),
]
"""Used where bundles are written; the signing key's own public half is believed anyway."""
