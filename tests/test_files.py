"""Files reach the disk whole or not at all."""

import resource
import stat
import subprocess
import sys

import pytest

from src.errors import UserError
from src.files import atomic_write, write_text
from tests.conftest import ROOT


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


def test_the_owner_can_read_and_write_whatever_the_writer_chose(tmp_path):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o400)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) & 0o600 == 0o600


def test_a_full_disk_is_an_error_that_names_the_file_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    code = (
        "import sys; from src.errors import UserError; from src.files import write_text\n"
        "try: write_text(sys.argv[1], 'x' * 100000)\n"
        "except UserError as error: print(error)"
    )

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files_only
    )
    assert done.stdout.strip() == f"{path}: cannot be written (File too large)"
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.x: cannot be written"):
        write_text(tmp_path / "file" / "x", "")
