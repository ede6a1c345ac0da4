"""The file that a purge writes its receipts to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from consentry.domain.errors import InvalidInput
from consentry.domain.orders import Receipt
from consentry.trainer.purge.receipts import as_fields


def check_receipts_file(path: Path) -> None:
    """Raise InvalidInput where the file's directory does not exist."""
    if not path.absolute().parent.is_dir():
        raise InvalidInput(
            f"The directory of {str(path)!r} does not exist.",
            code="input.file",
            fix="make it, or name another",
        )


def write_receipts(path: Path, receipts: Sequence[Receipt]) -> None:
    """Write the receipts as a JSON list; a file that is there is replaced whole or not at all."""
    documents = [as_fields(receipt) for receipt in receipts]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(documents, indent=2) + "\n")
    temporary.replace(path)
