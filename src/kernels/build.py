"""Compiles the kernels for the processor at hand, once, with the C++ compiler that is there."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Optional

from src.errors import UserError
from src.files import atomic_write

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
    """The compiled kernels, loaded: made at the first call on this machine, kept in build/ beside this file.

    An installation that this user may not write to has them in ~/.cache/ddrnet-kernels. None, with a line in the log,
    where there is no compiler, or it fails.
    """
    if platform.system() != "Linux":
        return _without(f"there are none for {platform.system()}")
    name = f"kernels-{_digest()}.so"
    paths = (FOLDER / "build" / name, Path(os.environ.get("HOME", "/"), ".cache/ddrnet-kernels", name))
    for path in paths:
        if _loads(path):
            return path
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        return _without(f"no C++ compiler ({', '.join(COMPILERS)}) found")
    _log.info("compiling the CPU kernels, once: %s", name)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, name)
        command = [compiler, *FLAGS, *map(str, sorted(FOLDER.glob("*.cc"))), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return _without(f"{' '.join(command)}\n{done.stderr}")
        for path in paths:
            with suppress(UserError), atomic_write(path) as temporary:
                shutil.copyfile(made, temporary)
            if _loads(path):
                return path
    return _without("they could not be written")


@functools.cache
def has_bfloat16() -> bool:
    """Whether the compiled kernels multiply in bfloat16: where the processor has AVX-512's BF16 instructions."""
    path = library()
    return path is not None and bool(ctypes.CDLL(str(path)).ddrnet_has_bfloat16())


def _without(reason: str) -> None:
    _log.warning("the CPU kernels: %s; MindSpore's own are used, slower", reason)


def _loads(path: Path) -> bool:
    """Load a library for good, so that its threads keep their code, and tell it how many of them it may have.

    A damaged one is removed. The number of threads is read here because importing MindSpore sets OMP_NUM_THREADS to 1
    in the C library's environment.
    """
    if not path.exists():
        return False
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        _log.warning("%s: is damaged (%s), compiling anew", path, error)
        path.unlink(missing_ok=True)
        return False
    most = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if most.isdigit():
        loaded.ddrnet_limit_threads(int(most))
    return True


def _digest() -> str:
    """Stands for all that the compiled kernels depend on: sources, flags and processor."""
    sources = sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])
    facts = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    processor = [line for line in facts if line.lower().startswith(("flags", "features", "model", "cpu part"))]
    return hashlib.sha256(
        "\0".join([*(path.read_text() for path in sources), *FLAGS, *processor]).encode()
    ).hexdigest()[:16]
