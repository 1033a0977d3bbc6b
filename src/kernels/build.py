"""Compiles the kernels for the processor at hand, once, with the C++ compiler that is there."""

import ctypes
import functools
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

_log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parent
COMPILERS = ("g++", "c++", "clang++")
FLAGS = (
    "-O3",
    "-mcpu=native" if platform.machine() == "aarch64" else "-march=native",
    "-std=c++17",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-pthread",
)


@functools.cache
def library() -> Optional[Path]:
    """The compiled kernels: made at the first call on this machine, kept in build/ beside this file.

    None, with a line in the log, where there is no compiler or it fails.
    """
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if platform.system() != "Linux" or compiler is None:
        _log.warning("no C++ compiler (%s) found: MindSpore's own CPU kernels are used, slower", ", ".join(COMPILERS))
        return None
    name = f"kernels-{_digest(compiler)}.so"
    folder = FOLDER / "build"
    if (folder / name).exists():
        return folder / name
    try:
        folder.mkdir(exist_ok=True)
        scratch = tempfile.mkdtemp(dir=folder)
    except OSError:  # an installation that this user may not write to: compiled anew by every process
        folder = Path(scratch := tempfile.mkdtemp(prefix="ddrnet-kernels-"))
    made = Path(scratch) / name
    command = [compiler, *FLAGS, *map(str, sorted(FOLDER.glob("*.cc"))), "-o", str(made)]
    _log.info("compiling the CPU kernels, once: %s", folder / name)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        made.replace(folder / name)
    if folder != Path(scratch):
        shutil.rmtree(scratch)
    if done.returncode:
        _log.warning("%s\n%sMindSpore's own CPU kernels are used, slower", " ".join(command), done.stderr)
        return None
    return folder / name


@functools.cache
def has_bfloat16() -> bool:
    """Whether the compiled kernels multiply in bfloat16: where the processor has AVX-512's BF16 instructions."""
    path = library()
    return path is not None and bool(ctypes.CDLL(str(path)).ddrnet_has_bfloat16())


def _digest(compiler: str) -> str:
    """Stands for all that the compiled kernels depend on: sources, flags, compiler and processor."""
    sources = sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    facts = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    processor = [line for line in facts if line.lower().startswith(("flags", "features", "model", "cpu part"))]
    parts = [*(path.read_text() for path in sources), *FLAGS, version, *processor]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
