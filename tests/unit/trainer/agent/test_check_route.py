"""POST /v1/check: what keeps lakeFS from committing, and what of this machine it never reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consentry.trainer.agent.bodies import ARROW, PARQUET

CHECK = "/v1/check"


def commit(**more: str) -> dict[str, str]:
    """The body that lakeFS sends before a commit."""
    return {
        "event_type": "pre-commit",
        "event_time": "2026-01-02T03:04:05Z",
        "action_name": "consent",
        "hook_id": "consentry",
        "repository_id": "training",
        "branch_id": "main",
        "source_ref": "main",
        "commit_message": "more posts",
        "committer": "ann",
    } | more


class TestFiles:
    def test_a_clean_file_is_200_and_a_violation_is_not(
        self, start: Any, data: SimpleNamespace
    ) -> None:
        """lakeFS goes by the status alone: anything but 2xx stops the commit."""
        agent = start(roots=[data.root])

        clean = agent.call("POST", CHECK, {"files": ["clean.csv"]})
        assert (clean.status, clean.data["outcome"], clean.data["rows"]) == (200, "clean", 1)

        bad = agent.call("POST", CHECK, {"files": ["clean.csv", str(data.root / "bad.csv")]})
        assert (bad.status, bad.data["code"]) == (409, "check.violations")
        report = bad.data["report"]
        assert (report["violations"], report["counts"]) == (2, {"OPTED_OUT": 2, "DEFAULT_ON": 2})
        assert [file["file"] for file in report["files"]] == ["clean.csv", "bad.csv"]
        assert b"bert" not in bad.body

    def test_excluded_members_are_named_when_asked_for(
        self, start: Any, data: SimpleNamespace
    ) -> None:
        """Whoever has to take the rows out needs them."""
        agent = start(roots=[data.root])
        found = agent.call("POST", CHECK, {"files": ["bad.csv"], "show_members": 10}).data[
            "report"
        ]["members"]
        assert found == [{"member": "bert", "reason": "OPTED_OUT", "file": "bad.csv", "row": 1}]

    @pytest.mark.parametrize(
        "name",
        [
            "../secret.csv",
            "{outside}",
            "link.csv",
            "links",
            "none.csv",
            "/etc/passwd",
            "\0",
            "http://localhost/x",
            "a" * 9000,
        ],
    )
    def test_only_what_lies_under_a_root_is_read(
        self, start: Any, data: SimpleNamespace, name: str
    ) -> None:
        """Whoever may ask for a check must not learn what else is on this machine, nor make it call
        others.
        """
        (data.root / "link.csv").symlink_to(data.outside)
        (data.root / "links").mkdir()
        (data.root / "links" / "a.csv").symlink_to(data.outside)
        agent = start(roots=[data.root])

        answer = agent.call(
            "POST", CHECK, {"files": [name.replace("{outside}", str(data.outside))]}
        )

        assert (answer.status, answer.data["code"]) == (422, "check.outside")
        assert str(data.outside.parent) not in answer.body.decode()

    def test_without_a_root_no_file_is_read(self, start: Any, data: SimpleNamespace) -> None:
        """The default must not be the whole disk."""
        answer = start().call("POST", CHECK, {"files": [str(data.root / "clean.csv")]})
        assert (answer.status, answer.data["code"]) == (409, "check.roots")

    def test_what_cannot_be_told_is_no_200(self, start: Any, data: SimpleNamespace) -> None:
        """A commit that nobody could check must not go through."""
        (data.root / "broken.parquet").write_bytes(b"PAR1")
        (data.root / "empty").mkdir()
        agent = start(roots=[data.root])
        for name in ("broken.parquet", "empty"):
            answer = agent.call("POST", CHECK, {"files": [name]})
            assert (answer.status, answer.data["code"]) == (422, "check.cannot_tell"), name
        wrong = agent.call("POST", CHECK, {"files": ["clean.csv"], "member_col": "author"})
        assert (wrong.status, "'member_id'" in wrong.data["detail"]) == (422, True)
        agent.follower.stale_detail = "the least fresh partition is 7 s old"
        stale = agent.call("POST", CHECK, {"files": ["clean.csv"]})
        assert (stale.status, stale.data["report"]["outcome"]) == (503, "cannot_tell")

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"files": []},
            {"files": "a"},
            {"files": [1]},
            {"files": ["a"], "url": "x"},
            {"files": ["a"] * 2000},
        ],
    )
    def test_a_body_that_names_no_files_is_refused(
        self, start: Any, data: SimpleNamespace, body: Any
    ) -> None:
        """An empty list of files would be clean."""
        assert start(roots=[data.root]).call("POST", CHECK, body).status == 422


def test_a_link_is_a_file_of_the_directories_in_which_it_stands(start: Any, tmp_path: Path) -> None:
    """They say of what country its rows are, wherever the bytes lie: a pause has to find them."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x.csv").write_text("member_id\nnobody-known\n")
    for place in ("HK", "US"):
        (tmp_path / "posts" / f"jurisdiction={place}").mkdir(parents=True)
        (tmp_path / "posts" / f"jurisdiction={place}" / "a.csv").symlink_to(
            tmp_path / "blobs" / "x.csv"
        )
    agent = start(roots=[tmp_path])

    whole = agent.call("POST", CHECK, {"files": ["posts"]})
    one_by_one = agent.call(
        "POST", CHECK, {"files": [f"posts/jurisdiction={place}/a.csv" for place in ("HK", "US")]}
    )

    def counts(answer: Any) -> list[Any]:
        return [file["counts"] for file in answer.data.get("report", answer.data)["files"]]

    assert counts(one_by_one) == counts(whole)
    assert all(one.get("JURISDICTION_UNKNOWN", 0) == 0 for one in counts(whole))


class TestLakeFS:
    def test_a_commit_is_checked_where_its_branch_is_mounted(
        self, start: Any, tmp_path: Path
    ) -> None:
        """The event names a branch and no files."""
        branch = tmp_path / "training" / "main" / "posts"
        branch.mkdir(parents=True)
        (branch / "a.csv").write_text("author\nanna\n")
        agent = start(roots=[tmp_path])
        path = f"{CHECK}?member_col=author"

        assert agent.call("POST", path, commit()).status == 200
        assert agent.call("POST", f"{path}&file=posts", commit()).status == 200
        (branch / "b.csv").write_text("author\nbert\n")
        assert agent.call("POST", path, commit()).status == 409
        merge = commit(event_type="pre-merge", branch_id="other", source_ref="main")
        assert agent.call("POST", path, merge).status == 409

    @pytest.mark.parametrize(
        "more",
        [
            {"event_type": "post-commit"},
            {"repository_id": ".."},
            {"repository_id": ""},
            {"branch_id": "../other"},
            {"branch_id": "a/b"},
        ],
    )
    def test_an_event_that_names_no_branch_is_refused(
        self, start: Any, tmp_path: Path, more: dict[str, str]
    ) -> None:
        """A check of another directory would let the commit through."""
        answer = start(roots=[tmp_path]).call("POST", CHECK, commit(**more))
        assert (answer.status, answer.data["code"]) == (422, "check.event")

    @pytest.mark.parametrize("file", ["../other", "posts/../../other", "/training/other", ".."])
    def test_a_file_of_another_branch_is_refused(
        self, start: Any, tmp_path: Path, file: str
    ) -> None:
        """What is checked has to be what is committed."""
        for branch in ("main", "other"):
            (tmp_path / "training" / branch).mkdir(parents=True)
            (tmp_path / "training" / branch / "a.csv").write_text("author\nanna\n")

        answer = start(roots=[tmp_path]).call(
            "POST", f"{CHECK}?member_col=author&file={file}", commit()
        )

        assert (answer.status, answer.data["code"]) == (422, "check.outside")

    def test_a_link_to_another_branch_is_refused(self, start: Any, tmp_path: Path) -> None:
        """Its rows are another commit's; within a branch a link is a file as any other."""
        for branch in ("main", "other"):
            (tmp_path / "training" / branch).mkdir(parents=True)
        (tmp_path / "training" / "other" / "a.csv").write_text("author\nanna\n")
        (tmp_path / "training" / "main" / "own.csv").write_text("author\nanna\n")
        (tmp_path / "training" / "main" / "b.csv").symlink_to(
            tmp_path / "training" / "main" / "own.csv"
        )
        agent = start(roots=[tmp_path])
        assert agent.call("POST", f"{CHECK}?member_col=author", commit()).status == 200
        (tmp_path / "training" / "main" / "a.csv").symlink_to(
            tmp_path / "training" / "other" / "a.csv"
        )

        answer = agent.call("POST", f"{CHECK}?member_col=author", commit())

        assert (answer.status, answer.data["code"]) == (422, "check.outside")

    def test_a_branch_that_is_not_mounted_is_not_clean(self, start: Any, tmp_path: Path) -> None:
        """A mount that is gone would let every commit through."""
        assert start(roots=[tmp_path]).call("POST", CHECK, commit()).status == 422


class TestBodies:
    def test_the_data_itself_may_be_the_body(self, agent: Any) -> None:
        """What is checked before it is written is in no file yet."""
        table = pa.table({"author": ["anna", "bert"]})
        sink, parquet = pa.BufferOutputStream(), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        pq.write_table(table, parquet)
        path = f"{CHECK}?member_col=author"
        for kind, body in ((ARROW, sink.getvalue()), (PARQUET, parquet.getvalue())):
            answer = agent.call("POST", path, body.to_pybytes(), kind=kind)
            assert (answer.status, answer.data["report"]["counts"]) == (
                409,
                {"OPTED_OUT": 1, "DEFAULT_ON": 1},
            )
            assert agent.call("POST", path, b"nonsense", kind=kind).status == 422
