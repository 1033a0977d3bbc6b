"""MindSpore's Ascend code for the tests: the stubs, made once a session, and a way to run programs over them."""

import fcntl
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ascend.stubs import make as stubs_maker
from tests.conftest import ROOT

HERE = Path(__file__).resolve().parent
# What another program or a test before may have left, and what decides how MindSpore starts.
STARTS = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE", "DEVICE_ID", "DEVICE_NUM", "ASCEND_RT_VISIBLE_DEVICES")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder bears the mark `ascend`."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ascend)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Where the stubs can be made, nothing here may be skipped, save what the machine forbids."""
    outcome = yield
    report = outcome.get_result()
    allowed = hasattr(report, "wasxfail") or "not allowed here" in str(report.longrepr)
    if report.skipped and HERE in item.path.parents and not why_not() and not allowed:
        report.outcome = "failed"
        report.longrepr = f"skipped, where MindSpore's Ascend code can be run: {report.longrepr}"


def why_not() -> str:
    """Why these tests cannot run here; '' where they can and must."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the stubs are made for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    return stubs_maker.why_not()


@dataclass(frozen=True)
class Ascend:
    """MindSpore's Ascend code over stubs in place of CANN's libraries."""

    values: dict[str, str]

    def environment(self, soc: str = "Ascend910B1", simulated: bool = False, **values: object) -> dict[str, str]:
        """The environment of a program that is to find a chip.

        Args:
            soc: MindSpore's name of the chip: Ascend910A, Ascend910B1, Ascend310P3.
            simulated: MindSpore's own dry run: graphs are compiled and nothing is launched, always on ms_backend.
            values: further variables; None takes one away.
        """
        result = {name: value for name, value in os.environ.items() if name not in STARTS and name[:3] != "MS_"}
        result.update(self.values, STUB_SOC=soc)
        for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
            rest = (str(ROOT), os.environ.get(name)) if name == "PYTHONPATH" else (os.environ.get(name),)
            result[name] = ":".join(filter(None, (self.values[name], *rest)))
        if simulated:
            result.update(MS_SIMULATION_LEVEL="1", RANK_ID="0", RANK_SIZE="1")
        result.update({name: str(value) for name, value in values.items()})
        return {name: value for name, value in result.items() if value != "None"}

    def run(
        self, command: list, folder: Path, timeout: float = 400, soc: str = "Ascend910B1", **values: object
    ) -> subprocess.CompletedProcess:
        """Run a command to its end in a folder; both streams are in `stdout`. `values` as for `environment`."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=self.environment(soc, **values),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )

    def python(self, code: str, folder: Path, **options: object) -> subprocess.CompletedProcess:
        """Run Python code, from a file, as MindSpore reads the source of what it compiles; `options` as for `run`."""
        (folder / "program.py").write_text(code)
        return self.run([sys.executable, "program.py"], folder, **options)


@pytest.fixture(scope="session")
def ascend(tmp_path_factory: pytest.TempPathFactory) -> Ascend:
    """The stubs of this MindSpore; made once, also where several processes of pytest run."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with (shared / "ascend_stubs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = shared / "ascend_stubs.json"
        if not ready.exists():
            ready.write_text(json.dumps(stubs_maker.make(shared / "ascend_stubs")))
        return Ascend(json.loads(ready.read_text()))
