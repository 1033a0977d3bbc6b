"""What tests of failing calls share: a library in front of the C library, and a program that runs behind it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def compiled(source: str, folder: Path) -> Path:
    """A library of C functions that take the place of the C library's, for LD_PRELOAD."""
    (folder / "shim.c").write_text(source)
    command = ["gcc", "-shared", "-fPIC", "-w", folder / "shim.c", "-o", folder / "shim.so", "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "shim.so"


def run_behind(shim: Path, code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a Python program with a shim in front of the C library; output and errors come back as text."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
