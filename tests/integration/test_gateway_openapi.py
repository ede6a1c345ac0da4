"""The gateway does what its description says, whatever is sent to it: searched by Schemathesis on a
real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gateway import EVERYTHING, Gateway
from tests.sizes import size
from tests.stack import World

pytestmark = pytest.mark.stack

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("CONSENTRY_OPENAPI_EXAMPLES", size(small=1, full=20)))
"""Generated requests for each operation and phase; more by hand, to search for longer."""

# Any text is a body of JSON lines: those that hold no event are told line by line.
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 422, 428, 429, 431, 503]

[[operations]]
include-path = "/v1/bulk"
checks.negative_data_rejection.enabled = false
"""


@pytest.mark.sized
def test_no_request_gets_an_answer_that_the_description_does_not_have(
    world: World, tmp_path: Path
) -> None:
    """A client is generated from the description: what it leaves out is what breaks that client at
    night.

    Left out is the check that every request which fits is accepted: that a purpose is in a policy,
    a key not used up and an opt-out not newer than what the person saw is not a matter of form.
    """
    world.processor().wait_ready()
    world.open_policy()
    gateway = Gateway(world)
    gateway.settle("m:42")
    world.produce_raw(b"m:43", b"garbage")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)

    done = subprocess.run(
        [
            *(
                str(SCHEMATHESIS),
                "--config-file",
                "schemathesis.toml",
                "run",
                f"{gateway.url}/openapi.json",
            ),
            *("--header", f"Authorization: Bearer {EVERYTHING}"),
            *("--exclude-checks", "positive_data_acceptance"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
            *("--generation-deterministic", "--continue-on-failure"),
            # One: Python 3.11 may fail to parse in two threads at a time (python/cpython#106905).
            *("--workers", "1", "--warnings", "off", "--no-color", "--request-timeout", "30"),
        ],
        cwd=tmp_path,
        env=os.environ
        | {"SCHEMATHESIS_HOOKS": "tests.integration.openapi_hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    assert "22 selected / 22 total" in done.stdout
    for status in ("500", "502"):
        assert gateway.running.metric("consentry_gateway_requests_total", status=status) == 0
    assert "request_failed" not in gateway.running.text()
    assert "Exception in ASGI application" not in gateway.running.text()
