"""How the kernels are compiled, kept and loaded: real files and processes, compilers that serve and that misbehave."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.kernels import build
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")
NOBODY = 65534


@pytest.fixture
def folder(tmp_path) -> Path:
    """An installation of the kernels' sources, with an empty build/ that is closed to others."""
    tmp_path.chmod(0o755)
    shutil.copytree(build.FOLDER, tmp_path / "kernels", ignore=shutil.ignore_patterns("build", "__pycache__"))
    (tmp_path / "kernels/build").mkdir(mode=0o700)
    return tmp_path / "kernels"


@pytest.fixture
def compiler(tmp_path) -> Path:
    """A program that takes a compiler's place and gives out the library that this process has loaded."""
    body = build.library().read_bytes().rpartition(build.SEAL)[0]
    (tmp_path / "body").write_bytes(body)
    log = f'case "$out" in *.so) echo made >> {tmp_path}/log;; esac'
    return script(tmp_path / "compiler", f'{log}; cp {tmp_path}/body "$out"')


def script(path: Path, code: str) -> Path:
    """A compiler: `code` with the output's name in $out; asked for its version it says one."""
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo Stand-in 1.0; exit; }\n'
        f'while [ "$1" != -o ]; do shift; done; out=$2\n{code}\n'
    )
    path.chmod(0o755)
    return path


def start(
    folder: Path, compiler: object, before: str = "", wrapper: tuple = (), **environment: str
) -> subprocess.Popen:
    code = (
        "import logging; from pathlib import Path; from src.kernels import build; logging.basicConfig(); "
        f"build.FOLDER, build.COMPILERS = Path({str(folder)!r}), ({str(compiler)!r},); {before}"
        "print(build.library())"
    )
    environment = {**os.environ, "HOME": "/nowhere", **environment}
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", code], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def load(*arguments: object, **environment: str) -> tuple[str, str]:
    """The library's path as a process of its own finds or makes it, and its complaints."""
    process = start(*arguments, **environment)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return out.strip(), errors


def compiled(tmp_path: Path) -> int:
    """How often the stand-in has made a library."""
    return (tmp_path / "log").read_text().count("made")


def test_a_library_is_made_once_for_its_owner_alone(folder, compiler, tmp_path):
    first, errors = load(folder, compiler)
    assert load(folder, compiler)[0] == first
    assert compiled(tmp_path) == 1
    assert errors == ""
    assert [str(path) for path in (folder / "build").iterdir()] == [first]
    assert Path(first).stat().st_mode & 0o777 == 0o600
    body, _, digest = Path(first).read_bytes().rpartition(build.SEAL)
    assert hashlib.sha256(body).hexdigest() == digest.decode()


def test_two_processes_that_compile_at_once_both_succeed(folder):
    quick = "build.FLAGS = tuple(flag.replace('-O3', '-O0') for flag in build.FLAGS); "
    paths = set()
    for process in [start(folder, "g++", quick) for _ in range(2)]:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        paths.add(out.strip())
    assert [str(path) for path in (folder / "build").iterdir()] == list(paths)


@pytest.mark.parametrize("spoil", ["0 %", "2 %", "50 %", "82 %", "99 %", "a bit", "no seal", "another file"])
def test_a_damaged_library_is_compiled_anew(spoil, folder, compiler, tmp_path):
    path = Path(load(folder, compiler)[0])
    whole = path.read_bytes()
    if spoil.endswith("%"):
        os.truncate(path, len(whole) * int(spoil[:-2]) // 100)
    elif spoil == "a bit":
        path.write_bytes(whole[:70_000] + bytes([whole[70_000] ^ 16]) + whole[70_001:])
    elif spoil == "no seal":
        path.write_bytes(whole.rpartition(build.SEAL)[0])
    else:
        path.write_bytes(b"no library" + build.SEAL + hashlib.sha256(b"no library").hexdigest().encode())
    again, errors = load(folder, compiler)
    assert again == str(path)
    assert f"{path}: is damaged" in errors
    assert path.read_bytes() == whole
    assert compiled(tmp_path) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "unreadable"])
def test_what_is_no_file_does_not_hold_up_the_start(kind, folder, compiler, tmp_path):
    path = Path(load(folder, compiler)[0])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    else:
        path.symlink_to(path)
    found, errors = load(folder, compiler)
    assert found == ("None" if kind == "folder" else str(path))
    assert str(path) in errors


@needs_root
@pytest.mark.parametrize("kind", ["file of another", "file for all", "folder of another", "group's folder"])
def test_what_others_may_have_written_is_not_loaded(kind, folder, compiler, tmp_path):
    """The planted library would say so when it is loaded."""
    path = Path(load(folder, compiler)[0])
    planted = tmp_path / "planted.cc"
    planted.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void Run() { puts("
        '"planted"); fflush(stdout); }\nextern "C" void ddrnet_limit_threads(int) {}\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", planted, "-o", tmp_path / "planted.so"], check=True)
    body = (tmp_path / "planted.so").read_bytes()
    path.write_bytes(body + build.SEAL + hashlib.sha256(body).hexdigest().encode())
    assert load(folder, compiler)[0].startswith("planted")  # as a file of our own it is loaded
    if kind == "file of another":
        os.chown(path, NOBODY, NOBODY)
    elif kind == "file for all":
        path.chmod(0o666)
    elif kind == "folder of another":
        os.chown(path.parent, NOBODY, NOBODY)
    else:
        path.parent.chmod(0o770)
        os.chown(path, NOBODY, NOBODY)
    found, errors = load(folder, compiler)
    assert "planted" not in found
    assert "belongs to another user, or others may write to it; it is not used" in errors
    if kind == "folder of another":
        assert found == "None"
        assert compiled(tmp_path) == 1  # found out before compiling
    else:
        assert found == str(path)
        assert path.stat().st_uid == 0
        assert path.parent.stat().st_mode & 0o777 == 0o700


@needs_root
@pytest.mark.parametrize("home", ["own", "of another", "for all", "relative", "empty"])
def test_a_closed_installation_keeps_them_in_a_home_that_is_ours_alone(home, folder, compiler, tmp_path):
    os.chown(folder / "build", NOBODY, NOBODY)  # as good as closed: not ours
    place = tmp_path / "home"
    place.mkdir()
    place.chmod(0o777 if home == "for all" else 0o700)
    os.chown(place, NOBODY if home == "of another" else 0, 0)
    named = {"relative": "home", "empty": ""}.get(home, str(place))
    found = {load(folder, compiler, f"import os; os.chdir({str(tmp_path)!r}); ", HOME=named)[0] for _ in range(2)}
    if home == "own":
        assert found == {str(path) for path in (place / ".cache/ddrnet-kernels").iterdir()}
        assert (place / ".cache/ddrnet-kernels").stat().st_mode & 0o777 == 0o700
        assert compiled(tmp_path) == 1
    else:
        assert found == {"None"}
        assert not list(tmp_path.glob("**/*.so"))
        assert not (tmp_path / "log").exists()


PLACES = {"nothing may be loaded from": "noexec", "is full": "size=1m"}
MOUNTED = 'mount -t tmpfs -o "$1,mode=700" none "$2" && shift 2 && exec "$@"'


@pytest.mark.parametrize("kind", PLACES)
def test_where_one_folder_does_not_serve_the_next_does(kind, folder, compiler, tmp_path):
    mounted = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, "sh", PLACES[kind]]
    if subprocess.run([*mounted, "/mnt", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    (tmp_path / "home").mkdir(mode=0o700)
    made, errors = load(folder, compiler, "", (*mounted, folder / "build"), HOME=str(tmp_path / "home"))
    assert [str(path) for path in (tmp_path / "home/.cache/ddrnet-kernels").iterdir()] == [made], errors


MISBEHAVING = {
    "hangs": ("sleep 1000 & sleep 1000", r"timed out after"),
    "fails": ("printf 'caf\\351 \\033[31m' >&2; exit 3", r"ended with 3: caf\\ufffd? ?"),
    "writes nothing": ("exit 0", r"No such file"),
    "writes a pipe": ('mkfifo "$out"', r"no regular file"),
    "writes a folder": ('mkdir "$out"', r"made no library \(.*Is a directory"),
    "writes a hole": ('truncate -s 1T "$out"', r"is larger than 100 MB"),
    "talks for ever": ("yes", r"timed out after"),
    "talks for ever when asked": ("exit 0", r"No such file"),
    "writes a part": ('head -c 100000 BODY > "$out"', r"made a library that cannot be loaded"),
    "writes rubbish": ('echo rubbish > "$out"', r"made a library that cannot be loaded"),
    "is killed": ("kill -SEGV $$", r"ended with -11"),
}


@pytest.mark.parametrize("kind", MISBEHAVING)
def test_a_compiler_that_misbehaves_is_one_line_and_leaves_nothing(kind, folder, compiler, tmp_path):
    code, words = MISBEHAVING[kind]
    bad = script(tmp_path / "bad", code.replace("BODY", str(tmp_path / "body")))
    if kind == "talks for ever when asked":
        bad.write_text(bad.read_text().replace("echo Stand-in 1.0; exit;", "yes;"))
    found, errors = load(folder, bad, "build.LIMIT = 1; build.ASKING_LIMIT = 5; ")
    assert found == "None"
    assert re.search(words if kind != "fails" else "ended with 3: caf", errors), errors
    assert "MindSpore's own are used, slower" in errors
    assert "\033" not in errors
    assert not list((folder / "build").iterdir())
    assert not running(str(bad))


def running(name: str) -> list[str]:
    """Processes whose command line has `name`, none of which is a zombie."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if name in line and "build.library" not in line:
            found.append(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_compiler_ends_with_the_process_that_started_it(number, folder, tmp_path):
    """Also where that process blocks signals, as training does."""
    marks = tmp_path / "marks"
    slow = script(tmp_path / "slow", f"grep SigBlk /proc/self/status > {marks}; sleep 1{os.getpid()} & wait")
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); "
    process = start(folder, slow, blocked)
    try:
        wait(lambda: marks.exists() and marks.read_text())
        assert int(marks.read_text().split()[1], 16) == 0
        process.send_signal(number)
        process.communicate(timeout=20)
        wait(lambda: not running(str(slow)) and not running(f"sleep 1{os.getpid()}"))
        wait(lambda: not list((folder / "build").iterdir()))
    finally:
        process.kill()
        process.wait()


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_sources_that_do_not_compile_are_told_and_leave_nothing(folder):
    (folder / "update.cc").write_text("no C++ at all")
    for path in folder.glob("*.cc"):
        if path.name != "update.cc":
            path.unlink()
    found, errors = load(folder, "g++")
    assert found == "None"
    assert "does not name a type" in errors
    assert not list((folder / "build").iterdir())


def test_another_source_or_compiler_is_another_library(folder, compiler, tmp_path):
    first = load(folder, compiler)[0]
    compiler.write_text(compiler.read_text().replace("Stand-in 1.0", "Stand-in 1.1"))
    second = load(folder, compiler)[0]
    with (folder / "update.cc").open("a") as source:
        source.write("// changed\n")
    third = load(folder, compiler)[0]
    assert len({first, second, third}) == 3
    assert compiled(tmp_path) == 3


def test_a_library_serves_also_when_the_compiler_is_gone(folder, compiler):
    made = load(folder, compiler)[0]
    assert load(folder, "no-such-compiler")[0] == made


@pytest.mark.parametrize("threads", ["many", "0", "-2", "\u00b2", ","])
def test_rubbish_in_omp_num_threads_is_told_and_all_cores_work(threads, folder, compiler):
    found, errors = load(folder, compiler, OMP_NUM_THREADS=threads)
    assert found != "None"
    assert f"OMP_NUM_THREADS: {threads}: is no number of threads" in errors
