"""Files on file systems that lack a call: a library in front of the C library refuses it, as such file systems do."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, command
from tests.shims import compiled, run_behind

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
    return compiled(SHIM, tmp_path_factory.mktemp("shim"))


def save(shim: Path, folder: Path, **refused: str) -> subprocess.CompletedProcess:
    (folder / "a.txt").write_text("old")
    return run_behind(shim, SAVE, folder, **refused)


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


READ_ONLY = """
set -e
mkdir -p "$1/data" "$1/home" "$1/out"
mount -t tmpfs none "$1/data" && cp -r "$2" "$1/data/digits" && mount -o remount,ro "$1/data"
mount -t tmpfs none "$1/home" && mount -o remount,ro "$1/home"
mount --bind "$3" "$3" && mount -o remount,bind,ro "$3"
export HOME="$1/home"
cd "$1/out"
shift 3
exec "$@"
"""
PRIVATE = ["unshare", "--mount", "--propagation", "private"]  # mounts that nobody else sees


@pytest.mark.skipif(
    subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode,
    reason="mounting is not allowed here",
)
def test_program_data_and_home_may_be_read_only(digits, tmp_path):
    told = ["--ddr_config", TINY, "--data_url", tmp_path / "data" / "digits", "--epochs", "1", "--warmup_length", "0"]
    told += ["--listing_cache", tmp_path / "home" / "listings"]
    script = [*PRIVATE, "sh", "-c", READ_ONLY, "sh", tmp_path, digits, ROOT]
    done = subprocess.run(
        [*map(str, script), *command("train.py", *told)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "ckpt_0" / "DDRNet23Slim.ckpt").exists()
    assert "the listing is not kept" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    done = subprocess.run(
        [*map(str, script), *command("train.py", *told, "--train_url", tmp_path / "home")],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "home/ckpt_0: cannot be written (Read-only file system); choose train_url" in done.stderr
