"""Files on file systems that lack a call: a library in front of the C library refuses it, as such file systems do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static int refused(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }
#define NEXT(name) dlsym(RTLD_NEXT, name)
int flock(int file, int operation) {
    if (refused("NO_FLOCK")) { errno = refused("NO_FLOCK"); return -1; }
    return ((int (*)(int, int))NEXT("flock"))(file, operation);
}
int chmod(const char *path, mode_t mode) {
    if (refused("NO_CHMOD")) { errno = refused("NO_CHMOD"); return -1; }
    return ((int (*)(const char *, mode_t))NEXT("chmod"))(path, mode);
}
int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    if (refused("NO_CHMOD")) { errno = refused("NO_CHMOD"); return -1; }
    return ((int (*)(int, const char *, mode_t, int))NEXT("fchmodat"))(folder, path, mode, flags);
}
int fsync(int file) {
    struct stat status;
    int is_folder = fstat(file, &status) == 0 && S_ISDIR(status.st_mode);
    const char *name = is_folder ? "NO_FOLDER_FSYNC" : "NO_FSYNC";
    if (refused(name)) { errno = refused(name); return -1; }
    return ((int (*)(int))NEXT("fsync"))(file);
}
"""
SAVE = """
import sys
from pathlib import Path
from src.errors import run
from src.files import claim, try_writing, write_text
def main():
    folder = Path(sys.argv[1])
    held = claim(folder / ".lock")
    try_writing(folder)
    write_text(folder / "a.txt", "new")
    print("locked" if held else "not locked")
run(main)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    done = subprocess.run(
        ["gcc", "-shared", "-fPIC", "-w", folder / "shim.c", "-o", library, "-ldl"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return library


def save(shim: Path, folder: Path, **refused: str) -> subprocess.CompletedProcess:
    (folder / "a.txt").write_text("old")
    environment = {**os.environ, **refused, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", SAVE, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def test_without_locks_a_run_goes_on_unlocked(error, shim, tmp_path):
    import errno

    done = save(shim, tmp_path, NO_FLOCK=str(getattr(errno, error)))
    assert (done.returncode, done.stdout) == (0, "not locked\n"), done.stderr
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("call", "error"), [("NO_CHMOD", 1), ("NO_CHMOD", 95), ("NO_FOLDER_FSYNC", 22), ("NO_FOLDER_FSYNC", 95)]
)
def test_without_modes_or_syncing_folders_files_are_written_all_the_same(call, error, shim, tmp_path):
    done = save(shim, tmp_path, **{call: str(error)})
    assert (done.returncode, done.stdout) == (0, "locked\n"), done.stderr
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name or "trial" in path.name] == []


@pytest.mark.parametrize(("error", "text"), [(5, "Input/output error"), (28, "No space left on device")])
def test_content_that_cannot_be_synced_is_not_there(error, text, shim, tmp_path):
    done = save(shim, tmp_path, NO_FSYNC=str(error))
    assert done.returncode == 75
    assert f"cannot be written ({text})" in done.stderr
    assert (tmp_path / "a.txt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", ".lock"}
