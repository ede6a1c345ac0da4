"""The AsyncAPI document: it says what topics, schemas and headers are, and the file in the
repository is the same.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastavro
import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

from consentry.cli.golden_files import print_or_check
from consentry.cli.schemas import app
from consentry.domain.errors import InvalidInput
from consentry.domain.events import MemberErased
from consentry.domain.values import MemberId, Micros
from consentry.schema_gate.asyncapi import KEYS, USES, asyncapi_document, asyncapi_text
from consentry.schema_gate.lint import Finding
from consentry.wire.cloudevents import event_headers
from consentry.wire.schemas import schemas, subject, topics

FILE = Path(str(files("consentry_schemas"))).parent / "asyncapi.yaml"
DOCUMENT = asyncapi_document()
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def references(value: Any) -> Iterator[str]:
    """Every $ref of a document."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


class TestDocument:
    def test_the_file_in_the_repository_is_what_the_code_says(self) -> None:
        """Producers in other languages write their code from the file."""
        assert FILE.read_text(encoding="utf-8") == asyncapi_text()

    def test_the_yaml_says_what_the_document_says(self) -> None:
        """NO is Norway, 0.5.0 is no number, and a default of zero bytes stays one."""
        assert YAML(typ="safe").load(io.StringIO(asyncapi_text())) == DOCUMENT

    def test_every_reference_leads_somewhere(self) -> None:
        """A broken one makes the whole document unreadable to generators."""
        for reference in references(DOCUMENT):
            found: Any = DOCUMENT
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
            assert found

    @pytest.mark.parametrize("name", topics())
    def test_a_topic_is_a_channel_with_its_own_messages_and_settings(self, name: str) -> None:
        """A topic that is made from the document must not delete after a week."""
        topic, channel = topics()[name], DOCUMENT["channels"][name]
        settings = channel["bindings"]["kafka"]["topicConfiguration"]

        assert channel["address"] == f"{{namespace}}.{name}"
        assert list(channel["messages"]) == list(topic.records)
        assert channel["bindings"]["kafka"]["partitions"] == topic.partitions_for("production")
        assert {
            key: str(value[0] if isinstance(value, list) else value)
            for key, value in settings.items()
        } == (topic.config_for("production"))
        assert topic.key in KEYS

    @pytest.mark.parametrize("name", schemas())
    def test_a_message_carries_its_schema_and_how_to_find_it_in_a_registry(self, name: str) -> None:
        """Whoever generates a serializer from it must write bytes that are accepted."""
        message = DOCUMENT["components"]["messages"][name]
        [topic] = [topic.name for topic in topics().values() if name in topic.records]

        assert message["payload"]["schema"] == json.loads(schemas()[name].text)
        assert fastavro.parse_schema(json.loads(json.dumps(message["payload"]["schema"])))
        assert message["x-subject"].format(namespace="consentry") == subject(
            "consentry", topic, name
        )
        assert message["bindings"]["kafka"]["schemaLookupStrategy"] == "TopicRecordNameStrategy"

    def test_every_topic_is_sent_to_and_read_by_somebody(self) -> None:
        """A topic that nobody reads is a promise that nobody keeps."""
        for action in ("send", "receive"):
            assert {use.topic for use in USES if use.action == action} == set(topics())
        assert len(DOCUMENT["operations"]) == len(USES)

    def test_the_headers_are_the_ones_that_are_sent(self) -> None:
        """A tool that routes by a header waits for ever for one that never comes."""
        told = DOCUMENT["components"]["messageTraits"]["cloudEvent"]["headers"]["properties"]
        event = MemberErased(
            event_id=bytes(16),
            member=MemberId("m"),
            effective_at=Micros(1 << 50),
            recorded_at=Micros(1 << 50),
            source="settings-web",
        )

        sent = {name: value.decode() for name, value in event_headers(event, traceparent=TRACE)}

        assert sent.keys() == told.keys()
        for name, value in sent.items():
            assert value == told[name].get("const", value)
            assert re.fullmatch(told[name].get("pattern", ".*"), value)


class TestCommand:
    def test_without_a_file_it_prints_the_document(self) -> None:
        """That is how the file is made."""
        assert CliRunner().invoke(app, ["asyncapi"]).output == asyncapi_text()

    def test_a_file_that_is_behind_fails_the_check_and_says_how(self, tmp_path: Path) -> None:
        """A document that drifts from the code is worse than none."""
        file = tmp_path / "asyncapi.yaml"
        file.write_text(asyncapi_text().replace("partitions: 64", "partitions: 63", 1))

        told = CliRunner().invoke(app, ["asyncapi", "--check", str(file)])

        assert told.exit_code == 1
        assert "-        partitions: 63" in told.output
        assert "+        partitions: 64" in told.output
        assert f"make it anew by `consentry schemas asyncapi > {file}`" in told.output

    def test_a_file_that_is_the_same_passes(self, tmp_path: Path) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        file = tmp_path / "asyncapi.yaml"
        file.write_text(asyncapi_text())

        assert CliRunner().invoke(app, ["asyncapi", "--check", str(file)]).exit_code == 0

    def test_a_file_that_is_not_there_is_an_error_with_a_fix(self, tmp_path: Path) -> None:
        """A check that passes without a file checks nothing."""
        with pytest.raises(InvalidInput, match="make it by `make-it > "):
            print_or_check("text", tmp_path / "none", command="make-it")

    def test_a_long_difference_is_cut(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The output of a build is read by a person."""
        file = tmp_path / "file"
        file.write_text("")

        with pytest.raises(typer.Exit):
            print_or_check("\n".join(map(str, range(500))), file, command="make-it")

        assert len(capsys.readouterr().out.splitlines()) < 50


class TestPublishCommand:
    def test_it_publishes_in_the_package_it_is_told(self, tmp_path: Path) -> None:
        """A release is made by a command, not by copying files by hand."""
        package = tmp_path / "consentry_schemas"
        shutil.copytree(str(files("consentry_schemas")), package)
        shutil.rmtree(package / "published", ignore_errors=True)

        first = CliRunner().invoke(app, ["publish", "--package", str(package)])
        second = CliRunner().invoke(app, ["publish", "--package", str(package)])

        assert len(first.output.splitlines()) == len(schemas())
        assert second.output == "nothing changed since the last published versions\n"

    def test_lint_tells_each_finding_and_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The build stops on it."""
        findings = [Finding("L03", "Thing", "has no doc")]
        monkeypatch.setattr("consentry.cli.schemas.check_package", lambda: findings)

        told = CliRunner().invoke(app, ["lint"])

        assert (told.exit_code, told.output) == (1, "L03  Thing: has no doc\n1 finding\n")
