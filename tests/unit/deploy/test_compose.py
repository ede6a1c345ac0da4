"""The stack in containers: docker-compose.yml is whole, starts in order, and gives nothing away."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]

# The keys of the compose specification that this file may use. A key outside of this list is a
# typing error, which the compose tool would refuse, or a new habit that somebody should look at.
TOP_LEVEL_KEYS = {"services", "volumes"}
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "ports", "read_only",
    "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_healthy", "service_completed_successfully"}
DURATION = re.compile(r"^\d+[smh]$")
VARIABLE = re.compile(r"\$\{([A-Z_]+)(:-([^}]*))?\}")
FIRST_RUN = ["init-topics", "init-schemas"]
SECRETS_VOLUME = "gateway-access"
SECRETS_FOLDER = "/access"
SECRETS = {
    "CONSENTRY_ACCESS_KEYS_FILE",
    "CONSENTRY_ACCESS_PEPPER_FILE",
    "CONSENTRY_TOKEN_KEYS_FILE",
}


def load(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return loaded


def compose_file() -> dict[str, Any]:
    return load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def known_settings() -> set[str]:
    """The environment variables that our settings read."""
    from consentry.ops.settings import Settings

    return {f"CONSENTRY_{name.upper()}" for name in Settings.model_fields}


def is_ours(service: Mapping[str, Any]) -> bool:
    return str(service.get("image", "")).startswith("consentry:")


def runs_once(service: Mapping[str, Any]) -> bool:
    return "restart" not in service


def shape_complaints(compose: Mapping[str, Any]) -> list[str]:
    """What the compose tool would refuse, or would take and not do what was meant."""
    unknown = [
        f"unknown top-level key {key}"
        for key in compose
        if key not in TOP_LEVEL_KEYS and key[:2] != "x-"
    ]
    declared = set(compose.get("volumes") or {})
    used: set[str] = set()
    complaints = unknown
    for name, service in compose["services"].items():
        complaints += [f"{name}: unknown key {key}" for key in service if key not in SERVICE_KEYS]
        complaints += [
            f"{name}: {complaint}" for complaint in order_complaints(service, compose["services"])
        ]
        tag = VARIABLE.sub(r"\3", str(service.get("image", ""))).partition(":")[2]
        if tag in {"", "latest"}:
            complaints.append(f"{name}: the image has no version")
        for volume in service.get("volumes", []):
            source = VARIABLE.sub(r"\3", volume).split(":")[0]
            used.add(source)
            if source.startswith("./"):
                complaints += (
                    [] if (ROOT / source).exists() else [f"{name}: {source} does not exist"]
                )
            elif source not in declared:
                complaints.append(f"{name}: volume {source} is not declared")
    return complaints + [f"volume {name} is used by nobody" for name in sorted(declared - used)]


def order_complaints(service: Mapping[str, Any], services: Mapping[str, Any]) -> list[str]:
    """What could let a service start before what it needs, or be called healthy without being
    asked.
    """
    complaints = []
    healthcheck = service.get("healthcheck")
    if healthcheck is None and not runs_once(service):
        complaints.append("runs on, but nobody asks whether it is well")
    if healthcheck is not None:
        complaints += [
            f"unknown healthcheck key {key}" for key in healthcheck if key not in HEALTHCHECK_KEYS
        ]
        complaints += (
            [] if healthcheck.get("test", [""])[0] == "CMD" else ["the health check needs a shell"]
        )
        durations = [
            healthcheck[key]
            for key in ("interval", "timeout", "start_period")
            if key in healthcheck
        ]
        complaints += [
            f"{value} is no duration" for value in durations if not DURATION.match(str(value))
        ]
    for target, how in service.get("depends_on", {}).items():
        condition = how.get("condition")
        if target not in services:
            complaints.append(f"waits for {target}, which does not exist")
        elif condition not in CONDITIONS:
            complaints.append(f"does not wait until {target} is of use")
        elif condition == "service_healthy" and "healthcheck" not in services[target]:
            complaints.append(f"waits for the health of {target}, which nobody asks for")
        elif condition == "service_completed_successfully" and not runs_once(services[target]):
            complaints.append(f"waits for the end of {target}, which runs on")
    return complaints


def safety_complaints(compose: Mapping[str, Any], settings: set[str]) -> list[str]:
    """What would open a door, or set something that nobody reads."""
    complaints = []
    for name, service in compose["services"].items():
        ports = [
            port for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")
        ]
        complaints += [f"{name}: port {port} is open to the network" for port in ports]
        if "no-new-privileges:true" not in service.get("security_opt", []):
            complaints.append(f"{name}: may gain privileges")
        if not is_ours(service):
            continue
        complaints += (
            [] if service.get("read_only") is True else [f"{name}: may write to its own image"]
        )
        complaints += [] if service.get("cap_drop") == ["ALL"] else [f"{name}: keeps capabilities"]
        complaints += [
            f"{name}: {key} is no known setting"
            for key in service.get("environment", {})
            if key not in settings
        ]
        if (
            "CONSENTRY_GATEWAY_DEV" in service.get("environment", {})
            or "--dev" in service["command"]
        ):
            complaints.append(f"{name}: lets everybody in by name")
    return complaints


def secret_complaints(compose: Mapping[str, Any]) -> list[str]:
    """Where a secret would be seen by more than the gateway, be lost with a container, or be
    missing at its start.
    """
    services = compose["services"]
    complaints = []
    for name, service in services.items():
        mounts = [
            volume
            for volume in service.get("volumes", [])
            if volume.split(":")[0] == SECRETS_VOLUME
        ]
        files = {
            key: value for key, value in service.get("environment", {}).items() if key in SECRETS
        }
        if name not in {"gateway", "init-access"}:
            complaints += [f"{name}: sees the secrets of the gateway"] if mounts or files else []
            continue
        complaints += (
            []
            if mounts == [f"{SECRETS_VOLUME}:{SECRETS_FOLDER}"]
            else [f"{name}: has no place for secrets"]
        )
        complaints += [f"{name}: does not name {key}" for key in sorted(SECRETS - files.keys())]
        complaints += [
            f"{name}: {key} is lost with the container"
            for key, value in sorted(files.items())
            if Path(value).parent != Path(SECRETS_FOLDER)
        ]
    if services["gateway"]["depends_on"].get("init-access") != {
        "condition": "service_completed_successfully"
    }:
        complaints.append("gateway: may start before its files are there")
    return complaints


class TestTheFile:
    def test_it_is_whole_and_starts_in_order(self) -> None:
        """Whoever tries the stack for the first time must not have to start it twice."""
        compose = compose_file()

        assert shape_complaints(compose) == []
        for name, service in compose["services"].items():
            if is_ours(service) and not runs_once(service):
                missing = [step for step in FIRST_RUN if step not in service["depends_on"]]
                assert missing == [], f"{name} does not wait for {missing}"

    def test_it_opens_nothing_and_sets_only_what_is_read(self) -> None:
        """A port open to a café's network would show who opted out; a misspelt setting would
        quietly be the default.
        """
        assert safety_complaints(compose_file(), known_settings()) == []

    def test_only_the_gateway_has_its_secrets_and_finds_them_again(self) -> None:
        """Whoever reads the pepper can make keys; a pepper that is lost makes every key of every
        service useless.
        """
        assert secret_complaints(compose_file()) == []

    def test_the_gateway_is_reached_from_this_machine_where_it_listens(self) -> None:
        """It speaks plain HTTP: on a port that is open to the network every credential could be
        read.
        """
        gateway = compose_file()["services"]["gateway"]
        published = [VARIABLE.sub(r"\3", port) for port in gateway["ports"]]

        assert gateway["environment"]["CONSENTRY_GATEWAY_HOST"] == "0.0.0.0"  # noqa: S104 - inside the container only
        assert published == [f"127.0.0.1:8780:{gateway['environment']['CONSENTRY_GATEWAY_PORT']}"]

    def test_only_the_bundler_sees_the_key_that_signs_and_writes_bundles(self) -> None:
        """Whoever has the key can make bundles without a single opt-out, which every trainer
        believes.
        """
        services = compose_file()["services"]
        mounts = {name: service.get("volumes", []) for name, service in services.items()}

        assert {
            name for name, found in mounts.items() if any("bundler-key" in one for one in found)
        } == {"bundler"}
        stores = {
            name: [one for one in found if one.startswith("bundles:")]
            for name, found in mounts.items()
        }
        assert {name: one for name, one in stores.items() if one} == {
            "bundler": ["bundles:/bundles"],
            "gateway": ["bundles:/bundles:ro"],
        }
        assert services["gateway"]["environment"]["CONSENTRY_BUNDLE_STORE"] == "/bundles"
        assert services["bundler"]["command"][:5] == [
            "bundler",
            "--store",
            "/bundles",
            "--key",
            "/signing/key",
        ]

    def test_an_opt_out_is_taken_without_the_processor(self) -> None:
        """Hurt when this breaks: who opts out while the processor is down, and is turned away."""
        assert "processor" not in compose_file()["services"]["gateway"]["depends_on"]

    def test_the_first_key_is_made_as_the_file_says(self) -> None:
        """A command in a comment is the first thing that somebody types, and the last that anybody
        tests.
        """
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        told = re.search(
            r"^#   docker compose run --rm --no-deps -T gateway (keys new .+) > ",
            text,
            re.MULTILINE,
        )
        assert told is not None

        made = run_consentry(told[1].split(), compose_file()["services"]["init-access"])

        assert made.stdout.startswith("ck_")

    def test_every_variable_has_a_default(self) -> None:
        """`docker compose up` has to work as it stands, without a file of variables."""
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

        assert [match[0] for match in VARIABLE.finditer(text) if match[2] is None] == []
        assert "$" not in VARIABLE.sub("", text)

    def test_the_image_carries_the_version_of_the_project(self) -> None:
        """`docker images` would name a release that is not the one inside."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        images = {
            service["image"] for service in compose_file()["services"].values() if is_ours(service)
        }

        assert {VARIABLE.sub(r"\3", image) for image in images} == {
            f"consentry:{project['version']}"
        }

    def test_the_same_port_is_served_asked_and_scraped(self) -> None:
        """Three places name the port of the metrics; if one differs, a healthy service is called
        dead.
        """
        compose = compose_file()
        prometheus = load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
        jobs = prometheus["scrape_configs"]
        targets = {
            target
            for job in jobs
            for config in job["static_configs"]
            for target in config["targets"]
        }

        running = {
            name: service for name, service in compose["services"].items() if is_ours(service)
        }
        running = {name: service for name, service in running.items() if not runs_once(service)}

        assert targets == {
            f"{name}:{one['environment']['CONSENTRY_METRICS_PORT']}"
            for name, one in running.items()
        }
        for service in running.values():
            port = service["environment"]["CONSENTRY_METRICS_PORT"]
            assert f"http://127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]

    def test_every_trainer_owes_receipts(self) -> None:
        """A trainer that no purge order waits for would keep deleted members' data unnoticed."""
        services = compose_file()["services"]
        subscribers = services["processor"]["environment"]["CONSENTRY_SUBSCRIBERS"]

        owing = {entry.split("=")[0] for entry in subscribers.split(",")}

        assert owing == {name for name in services if name.startswith("trainer-")}
        assert services["gateway"]["environment"]["CONSENTRY_SUBSCRIBERS"] == subscribers
        for name in owing:
            assert services[name]["command"] == ["trainer", "--dataset", "/data", "--name", name]

    def test_every_command_exists(self) -> None:
        """A renamed command would only be found by whoever starts the stack."""
        consentry = Path(sys.executable).with_name("consentry")
        services = compose_file()["services"].values()
        commands = {tuple(service["command"]) for service in services if is_ours(service)}

        for command in sorted(commands):
            name = list(takewhile(lambda word: not word.startswith("-"), command))
            plain = {
                key: value
                for key, value in os.environ.items()
                if key not in ("FORCE_COLOR", "PY_COLORS")
            }
            shown = subprocess.run(
                [consentry, *name, "--help"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env=plain | {"NO_COLOR": "1", "COLUMNS": "160"},
            )
            assert shown.returncode == 0, f"consentry {' '.join(name)}: {shown.stderr}"
            assert [
                word for word in command if word.startswith("--") and word not in shown.stdout
            ] == []

    def test_the_compose_tool_takes_it_without_a_word(self) -> None:
        """Our own rules above are stricter than the tool in places, but the tool has the last
        word.
        """
        tool = compose_tool()
        if tool is None:
            pytest.skip("no docker compose on this machine: only our own rules were checked")

        result = subprocess.run(
            [*tool, "--file", ROOT / "docker-compose.yml", "config", "--quiet"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def run_consentry(words: list[str], service: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """What a container of the service runs, then these words in another, with a new folder as the
    volume of secrets.
    """
    consentry = Path(sys.executable).with_name("consentry")
    with tempfile.TemporaryDirectory() as folder:
        volume = {
            key: str(Path(folder, Path(value).name))
            for key, value in service["environment"].items()
        }
        for arguments in (service["command"], service["command"], words):
            result = subprocess.run(
                [consentry, *arguments],
                capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], **volume},
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
    return result


def compose_tool() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            answer = subprocess.run(
                [*command, "version"], capture_output=True, timeout=60, check=False
            )
            if answer.returncode == 0:
                return command
    return None


Change = Callable[[dict[str, Any]], object]


class TestTheRules:
    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda c: c.update(version="3"), "unknown top-level key version"),
            (lambda c: c["services"]["redis"].update(comand=[]), "redis: unknown key comand"),
            (lambda c: c["services"]["redis"].pop("healthcheck"), "redis: runs on, but nobody "
                                                                  "asks whether it is well"),
            (
                lambda c: c["services"]["kafka"].pop("healthcheck"),
                "registry: waits for the health of kafka, which nobody asks for",
            ),
            (
                lambda c: c["services"]["init-topics"].update(restart="always"),
                "processor: waits for the end of init-topics, which runs on",
            ),
            (
                lambda c: c["services"]["processor"]["depends_on"].update(gone={"condition": "service_healthy"}),
                "processor: waits for gone, which does not exist",
            ),
            (
                lambda c: c["services"]["processor"]["depends_on"].update(redis={"condition": "service_started"}),
                "processor: does not wait until redis is of use",
            ),
            (lambda c: c["services"]["redis"].update(image="redis"), "redis: the image has no "
                                                                     "version"),
            (lambda c: c["volumes"].pop("redis-data"), "redis: volume redis-data is not declared"),
            (lambda c: c["volumes"].update(left=None), "volume left is used by nobody"),
            (lambda c: c["services"]["redis"]["healthcheck"].update(interval="5"), "redis: 5 is no duration"),
            (
                lambda c: c["services"]["redis"]["healthcheck"].update(test=["CMD-SHELL", "redis-cli ping"]),
                "redis: the health check needs a shell",
            ),
        ],
    )  # fmt: skip
    def test_a_broken_shape_is_noticed(self, change: Change, complaint: str) -> None:
        """A rule that cannot fail protects nobody."""
        compose = copy.deepcopy(compose_file())
        change(compose)

        assert complaint in shape_complaints(compose)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda s: s["redis"].update(ports=["6379:6379"]), "redis: port 6379:6379 is open to "
                                                               "the network"),
            (lambda s: s["kafka"].pop("security_opt"), "kafka: may gain privileges"),
            (lambda s: s["processor"].update(read_only=False), "processor: may write to its own "
                                                               "image"),
            (lambda s: s["processor"].pop("cap_drop"), "processor: keeps capabilities"),
            (
                lambda s: s["processor"]["environment"].update(CONSENTRY_REDIS_ULR=""),
                "processor: CONSENTRY_REDIS_ULR is no known setting",
            ),
            (
                lambda s: s["gateway"].update(ports=["8780:8780"]),
                "gateway: port 8780:8780 is open to the network",
            ),
            (lambda s: s["gateway"]["command"].append("--dev"), "gateway: lets everybody in by "
                                                                "name"),
            (
                lambda s: s["gateway"]["environment"].update(CONSENTRY_GATEWAY_DEV="true"),
                "gateway: lets everybody in by name",
            ),
        ],
    )  # fmt: skip
    def test_an_open_door_is_noticed(self, change: Change, complaint: str) -> None:
        """A rule that cannot fail protects nobody."""
        compose = copy.deepcopy(compose_file())
        settings = {
            key for one in compose["services"].values() for key in one.get("environment", {})
        }
        settings.add("CONSENTRY_GATEWAY_DEV")
        change(compose["services"])

        assert safety_complaints(compose, settings) == [complaint]

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (
                lambda s: s["trainer-a"].update(volumes=["gateway-access:/data"]),
                "trainer-a: sees the secrets of the gateway",
            ),
            (
                lambda s: s["processor"]["environment"].update({"CONSENTRY_TOKEN_KEYS_FILE": "/access/token-keys"}),
                "processor: sees the secrets of the gateway",
            ),
            (lambda s: s["init-access"].pop("volumes"), "init-access: has no place for secrets"),
            (
                lambda s: s["gateway"]["environment"].pop("CONSENTRY_ACCESS_PEPPER_FILE"),
                "gateway: does not name CONSENTRY_ACCESS_PEPPER_FILE",
            ),
            (
                lambda s: s["gateway"]["environment"].update(CONSENTRY_ACCESS_KEYS_FILE="/keys.json"),
                "gateway: CONSENTRY_ACCESS_KEYS_FILE is lost with the container",
            ),
            (lambda s: s["gateway"]["depends_on"].pop("init-access"), "gateway: may start before "
                                                                      "its files are there"),
        ],
    )  # fmt: skip
    def test_a_secret_that_is_seen_or_lost_is_noticed(self, change: Change, complaint: str) -> None:
        """A rule that cannot fail protects nobody."""
        compose = copy.deepcopy(compose_file())
        change(compose["services"])

        assert secret_complaints(compose) == [complaint]
