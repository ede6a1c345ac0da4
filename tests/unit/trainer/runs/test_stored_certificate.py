"""Where a certificate and its reads lie, and what is said where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.trainer.runs.stored_certificate import StoredCertificate, open_file


@pytest.mark.parametrize(
    ("name", "certificate", "reads"),
    [
        ("runs/7", "runs/7/certificate.json", "runs/7/reads.parquet"),
        ("runs/7/", "runs/7/certificate.json", "runs/7/reads.parquet"),
        ("s3://b/runs/7", "s3://b/runs/7/certificate.json", "s3://b/runs/7/reads.parquet"),
        ("runs/7/other.json", "runs/7/other.json", "runs/7/reads.parquet"),
        ("other.json", "other.json", "./reads.parquet"),
    ],
)
def test_a_certificate_is_named_by_itself_or_by_its_runs_folder(
    name: str, certificate: str, reads: str
) -> None:
    """Both are at hand: the folder in the store, the file in a mail."""
    assert StoredCertificate.named(name) == (certificate, reads)


def test_a_run_without_a_certificate_is_no_violation(tmp_path: Path) -> None:
    """It may still go on: there is nothing to judge yet."""
    with pytest.raises(Unavailable) as refusal:
        StoredCertificate.named(str(tmp_path)).read(None)

    assert refusal.value.code == "certificate.none"


def test_reads_that_are_not_there_are_none_and_named_ones_are_refused(tmp_path: Path) -> None:
    """A certificate alone can be verified; a wrong path must not be passed over."""
    stored = StoredCertificate.named(str(tmp_path))

    with stored.open_reads(None) as reads:
        assert reads is None
    with pytest.raises(InvalidInput), stored.open_reads(str(tmp_path / "none.parquet")):
        pass


def test_a_url_of_an_unknown_kind_is_refused_by_name() -> None:
    """A traceback of fsspec would not name what to install."""
    with pytest.raises(InvalidInput, match="nowhere://x"), open_file("nowhere://x"):
        pass
