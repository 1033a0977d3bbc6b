"""The environment: which Python the scripts take, what they say otherwise, and who sets what MindSpore reads."""

import ast
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def sourced(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """A line of bash after scripts/environment.sh, in a folder that has this project's requirement files."""
    for name in ("requirements.txt", "pyproject.toml"):
        (cwd / name).write_bytes((ROOT / name).read_bytes())
    return subprocess.run(
        ["bash", "-c", f"source {ROOT}/scripts/environment.sh; {line}"],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def python(folder: Path, version: str) -> Path:
    """A stand-in that says it is that Python."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python"
    number = tuple(map(int, version.split(".")))
    path.write_text(
        "#!/usr/bin/env python3\n"
        "import sys\n"
        f"sys.version_info = type('V', (tuple,), {{}})({(*number, 0)})\n"
        "exec(sys.argv[2])\n"
    )
    path.chmod(0o755)
    return path


def test_the_named_python_is_taken(tmp_path):
    named = python(tmp_path / "3.12", "3.12")
    done = sourced("find_python; test_venv", tmp_path, PYTHON=str(named))
    assert (done.returncode, done.stdout) == (0, f"{named}\n.venv-test-3.12\n")


@pytest.mark.parametrize(
    ("version", "said"), [("3.13", "is Python 3.13; MindSpore has wheels for 3.9 to 3.12"), ("", "cannot be run")]
)
def test_a_named_python_that_does_not_serve_is_an_error_and_nothing_is_installed(version, said, tmp_path):
    named = python(tmp_path / "bin", version) if version else tmp_path / "missing"
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(f"#!/bin/sh\ntouch {tmp_path}/installed\n")
    (tools / "apt-get").chmod(0o755)
    done = sourced("find_python", tmp_path, PYTHON=str(named), PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert f"PYTHON={named}: {said}" in done.stderr
    assert not (tmp_path / "installed").exists()


def test_an_environment_of_another_python_than_the_named_one_is_refused(tmp_path):
    python(tmp_path / ".venv" / "bin", "3.9")
    done = sourced("make_venv .venv -r requirements.txt", tmp_path, PYTHON=str(python(tmp_path / "3.12", "3.12")))
    assert done.returncode == 1
    assert "is 3.12, but .venv was made with 3.9; remove .venv, or unset PYTHON" in done.stderr


@pytest.mark.parametrize("program", [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")], ids=lambda path: path.name)
def test_no_program_imports_mindspore_before_what_sets_its_environment(program):
    """MindSpore reads GLOG_v and a rank table when it is imported; src/__init__.py has both in order before."""
    packages = []
    for node in ast.parse(program.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        packages += [name.partition(".")[0] for name in names]
    if "mindspore" in packages:
        assert "src" in packages[: packages.index("mindspore")]
