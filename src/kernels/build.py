"""Compiles the kernels for the processor at hand, once, with the C++ compiler that is there.

What is loaded runs as this user, so it is loaded only from a file and a folder that nobody else can have written, and
only with the SHA-256 at its end that was put there when it had been compiled: a file that was cut off would end the
process by a signal.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from src.errors import UserError, printable
from src.files import atomic_write, is_directory, is_private, open_regular, read_bytes, sweep

_log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parent
COMPILERS = ("g++", "c++", "clang++")
FLAGS = (
    "-O3",
    "-mcpu=native" if platform.machine() == "aarch64" else "-march=native",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fPIC",
    "-pthread",
)
LIMIT = 600  # seconds that compiling may take
ASKING_LIMIT = 20  # seconds that a compiler may take to tell its version, and a process to load what it made
LARGEST = 100_000_000  # bytes of a library
ROOM = 32 << 20  # bytes that compiling may take, with what lies between
MOST_OUTPUT = 1 << 16  # bytes of what a compiler says
DAY = 24 * 3600
SEAL = b"\nsha256:"  # before the digest, behind the library's own bytes


@functools.cache
def library() -> Optional[Path]:
    """The compiled kernels, loaded: made at the first call on this machine, kept in build/ beside this file.

    An installation that this user may not write to has them in ~/.cache/ddrnet-kernels. None, with a line in the log,
    where there is no compiler, or it fails, or both folders are closed or others may write to them.
    """
    if platform.system() != "Linux":
        return _without(f"there are none for {platform.system()}")
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    pattern = f"kernels-{_digest()}-*.so"
    folders = [FOLDER / "build"]
    home = os.environ.get("HOME", "")
    if Path(home).is_absolute() and is_private(home):
        folders.append(Path(home, ".cache/ddrnet-kernels"))
    version = _version(compiler) if compiler else ""
    name = pattern.replace("*", hashlib.sha256(version.encode()).hexdigest()[:8])
    for folder in folders:
        try:
            there = [folder / name] if compiler else sorted(folder.glob(pattern))
        except OSError:  # a folder that may not be looked into
            continue
        loaded = next((path for path in there if os.path.lexists(path) and _is_ours(folder) and _loads(path)), None)
        if loaded:
            return loaded
    if compiler is None:
        return _without(f"no C++ compiler ({', '.join(COMPILERS)}) found, which apt-get install g++ would bring")
    open_folders = [folder for folder in folders if _is_open(folder) and not is_directory(folder / name)]
    if not open_folders:
        return _without(
            f"no folder for them: {' and '.join(map(str, folders))} cannot be written or are not ours alone"
        )
    _log.info("compiling the CPU kernels, once: %s", name)
    reason = "they could not be written"
    for folder in open_folders:
        sweep(folder, "kernels-.*", age=DAY)
        try:
            content = _compiled(compiler, folder)
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(content)
            (folder / name).chmod(0o600)
            if _loads(folder / name):
                return folder / name
        except _NoLibrary as error:  # nor would there be one in another folder
            return _without(printable(error, 2000))
        except (OSError, UserError) as error:
            reason = printable(error, 2000)
    return _without(reason)


@functools.cache
def has_bfloat16() -> bool:
    """Whether the compiled kernels multiply faster in bfloat16: by AMX, or by AVX-512's BF16 instructions on AMD's."""
    path = library()
    return path is not None and bool(ctypes.CDLL(str(path)).ddrnet_has_bfloat16())


def block() -> int:
    """The output channels that the compiled kernels compute at once: packed weights are filled up to a multiple."""
    return ctypes.CDLL(str(library())).ddrnet_block()


def _without(reason: str) -> Optional[Path]:
    _log.warning("the CPU kernels: %s; MindSpore's own are used, slower", reason)
    return None


def _is_ours(path: Path) -> bool:
    """Whether a file or folder is there and private; says where it is there and is not."""
    ours = is_private(path)
    if not ours and os.path.lexists(path):
        _log.warning("%s: belongs to another user, or others may write to it; it is not used", path)
    return ours


def _is_open(folder: Path) -> bool:
    """Whether a library can be made in a folder, which is made, and closed to others, where it is this user's."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.geteuid() and stat.S_IMODE(folder.stat().st_mode) & 0o022:
            folder.chmod(0o700)
        if not _is_ours(folder):
            return False
        disk = os.statvfs(folder)
        with tempfile.TemporaryFile(dir=folder):
            return disk.f_bavail * disk.f_frsize >= ROOM
    except OSError:
        return False


def _loads(path: Path) -> bool:
    """Load a library for good, so that its threads keep their code, and tell it how many of them it may have.

    Not one that is damaged or that others may have written. The number of threads is read here because importing
    MindSpore sets OMP_NUM_THREADS to 1 in the C library's environment.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST)
        if not _is_ours(path):
            return False
        body, _, digest = content.rpartition(SEAL)
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise OSError(0, "it is not what was compiled")
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        _log.warning("%s: is damaged (%s), compiling anew", path, error.strerror or error)
        return False
    most = _most_threads(os.environ.get("OMP_NUM_THREADS", ""))
    if most:
        loaded.ddrnet_limit_threads(most)
    return True


def _most_threads(text: str) -> int:
    """What OMP_NUM_THREADS says, of which the first number counts; 0: nothing, or nothing that can be read."""
    first = text.split(",")[0].strip()
    if re.fullmatch(r"\+?[0-9]{1,9}", first) and int(first):
        return int(first)
    if text.strip():
        _log.warning("OMP_NUM_THREADS: %s: is no number of threads; all cores are used", printable(text))
    return 0


class _NoLibrary(Exception):
    """The compiler makes none; the message says why."""


def _compiled(compiler: str, folder: Path) -> bytes:
    """The library's bytes and their seal, made in a folder of its own within the one that it is meant for.

    So neither a missing or full folder of the system's for temporary files matters, nor one from which nothing may be
    loaded.

    Raises:
        _NoLibrary: the compiler makes none.
        OSError: none can be made in this folder, or loaded from it.
    """
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as scratch:
        sources = sorted(FOLDER.glob("*.cc"), key=lambda path: path.stat().st_size, reverse=True)
        objects = {source: str(Path(scratch, f"{source.stem}.o")) for source in sources}
        made = str(Path(scratch, "kernels.so"))
        compiling = [[compiler, *FLAGS, "-c", str(source), "-o", name] for source, name in objects.items()]
        try:
            for commands in (compiling, [[compiler, *FLAGS, "-shared", *objects.values(), "-o", made]]):
                for command, (code, output) in zip(commands, _run_all(commands, LIMIT, scratch)):
                    if code:
                        raise _NoLibrary(f"{' '.join(command)} ended with {code}: {output.strip()}")
            body = read_bytes(made, LARGEST)
        except (subprocess.SubprocessError, UserError) as error:
            raise _NoLibrary(f"{compiler} made no library ({error})") from error
        loading = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({made!r})"]
        try:
            code, output = _run(loading, ASKING_LIMIT, scratch)
        except subprocess.SubprocessError as error:
            raise OSError(0, str(error)) from error
        if code:
            raise OSError(0, f"{compiler} made a library that cannot be loaded: {output.strip()[-200:]}")
        return body + SEAL + hashlib.sha256(body).hexdigest().encode()


def _version(compiler: str) -> str:
    """A compiler's own words on itself; empty where it has none."""
    try:
        return _run([compiler, "--version"], ASKING_LIMIT)[1].partition("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""


def _run(command: list[str], limit: float, scratch: str = "") -> tuple[int, str]:
    """Run one process to its end, as `_run_all`."""
    return _run_all([command], limit, scratch)[0]


def _run_all(commands: list[list[str]], limit: float, scratch: str = "") -> list[tuple[int, str]]:
    """Run processes to their ends, one a core at a time.

    They and their children end when the limit is over, and when this process dies, however it does.

    Args:
        scratch: a folder that goes with them when this process dies; until then their temporary files are there.

    Returns:
        Of each its exit code and the first of what it wrote, bytes that are no UTF-8 replaced.

    Raises:
        OSError: one cannot be started. subprocess.TimeoutExpired: they took longer than `limit` seconds.
    """
    end, cores = time.monotonic() + limit, len(os.sched_getaffinity(0))
    waiting, running = list(commands), list[subprocess.Popen]()
    ended = []
    try:
        with _guard(scratch) as guard:
            while waiting or running:
                while waiting and len(running) < cores:
                    running.append(_start(waiting.pop(0), guard, scratch))
                output = _first_output(running[0], end)
                ended.append((running.pop(0).returncode, output))
    except BaseException:
        for process in running:  # which the guard has ended
            process.communicate()
        raise
    return ended


def _start(command: list[str], guard: int, scratch: str) -> subprocess.Popen:
    def prepare() -> None:
        os.write(guard, f"{os.getpid()}\n".encode())
        signal.pthread_sigmask(signal.SIG_SETMASK, set())  # a run blocks what it waits for; this must not inherit it

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=prepare,
        env={**os.environ, "TMPDIR": scratch} if scratch else None,
    )


def _first_output(process: subprocess.Popen, end: float) -> str:
    """What a process writes until it ends, as far as it is kept: one that writes without end must not fill memory."""
    assert process.stdout is not None
    kept = b""
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise subprocess.TimeoutExpired(process.args, LIMIT)
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            process.wait(max(0.1, end - time.monotonic()))
            process.stdout.close()
            return kept.decode(errors="replace")
        kept = (kept + piece)[:MOST_OUTPUT]


@contextlib.contextmanager
def _guard(scratch: str) -> Iterator[int]:
    """Around processes: where the block does not end well, or this process dies in it, they end too, and a folder goes.

    A shell sees to it once nobody holds its pipe any longer, on which each of them has written its number: the block's
    value is the pipe's descriptor.
    """
    code = 'while read -r group; do all="$all -$group"; done; [ "$all" ] && kill -s KILL -- $all'
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f'{code}; [ -z "$1" ] || rm -rf -- "$1"', "sh", scratch],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert shell.stdin is not None
    try:
        yield shell.stdin.fileno()
        shell.kill()
    finally:
        shell.stdin.close()
        shell.wait()


def _digest() -> str:
    """Stands for all that the compiled kernels depend on but the compiler: sources, flags, processor, C library."""
    sources = sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")])
    try:
        facts = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        facts = []
    processor = [line for line in facts if line.lower().startswith(("flags", "features", "model", "cpu part"))]
    libc = " ".join(platform.libc_ver())
    texts = [*(path.read_text() for path in sources), *FLAGS, *processor, platform.machine(), libc]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
