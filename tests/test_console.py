"""Programs whose output goes nowhere, whose reader has left, or which meet an error that nobody foresaw."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TALK = """
import logging, sys
from src.errors import run
def main():
    for number in range(20000):
        print("line", number, flush=True)
        logging.info("log %d", number)
        print("error line", file=sys.stderr)
    open({path!r}, "w").write("done")
run(main)
"""


def talk(tmp_path, shell: str) -> bool:
    """Run a program that talks a lot under a shell line, in which {} is its command; whether it came to its end."""
    script, result = tmp_path / "talk.py", tmp_path / "result"
    script.write_text(TALK.format(path=str(result)))
    line = shell.format(f"{sys.executable} {script}")
    done = subprocess.run(
        ["bash", "-c", line], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in done.stderr + done.stdout, done.stderr
    assert b"Exception ignored" not in done.stderr
    return result.exists() and result.read_text() == "done"


@pytest.mark.parametrize(
    "shell",
    [
        "{} 2>/dev/null | head -1",
        "{} 2>&1 | head -1",
        "{} >/dev/full 2>/dev/full",
        "{} >&- 2>/dev/null",
        "{} 2>&- >/dev/null",
        "{} >&- 2>&-",
    ],
)
def test_a_program_whose_output_fails_goes_on_to_its_end(shell, tmp_path):
    assert talk(tmp_path, shell)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed, tmp_path):
    """What libraries print would stand in it."""
    script = "import os, sys, src\nwith open(sys.argv[1], 'w') as file:\n    os.write(1, b'x')\n    os.write(2, b'x')"
    line = f'{sys.executable} -c "{script}" {tmp_path}/checkpoint {closed}'
    subprocess.run(["bash", "-c", line], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=True)
    assert (tmp_path / "checkpoint").read_bytes() == b""


def ended(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", f"from src.errors import run\n{code}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_an_error_that_nobody_foresaw_is_one_line_and_the_traceback_is_to_be_had():
    code = "def main():\n    {}['a\\nb']\nrun(main)"
    done = ended(code)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "KeyError" in done.stderr
    assert "DDRNET_TRACEBACK=1" in done.stderr
    done = ended(code, DDRNET_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_what_a_strict_stream_cannot_encode_is_escaped():
    done = ended("run(lambda: print('caf\\udce9', '红'))", PYTHONIOENCODING="ascii:strict")
    assert (done.returncode, done.stdout) == (0, "caf\\udce9 \\u7ea2\n")
