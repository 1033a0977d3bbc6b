"""Which checkpoint is the newest, what odd folders do, and what is kept: on a network of six numbers."""

import json
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import nn

from src.args import Config
from src.errors import UserError
from src.files import is_fixed
from src.run_folder import write_run
from src.tools.callback import Metrics
from src.trainers.checkpoint import Checkpoints, Cursor, read_saved
from src.weights.formats import write_ckpt
from tests.conftest import ROOT, TINY
from tests.processes import NOBODY, as_nobody


class SmallStep(nn.Cell):
    """A network of six numbers and a step around it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Dense(2, 2)
        self.updates = ms.Parameter(ms.Tensor(0), name="updates")

    def state(self) -> dict:
        return {"updates": self.updates}


@pytest.fixture
def step() -> SmallStep:
    return SmallStep()


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "ckpt_0", "DDRNet23", keep=5)


def save(checkpoints: Checkpoints, step: SmallStep, *places: tuple[int, int]) -> list[Path]:
    return [checkpoints.save(step.network, step, Config(), Cursor(*place), False) for place in places]


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("touch", ["all alike", "reversed", "unpacked without times"])
def test_the_order_is_that_of_saving_whatever_the_files_times_say(touch, checkpoints, step, tmp_path):
    # Epoch 2 was begun anew from 1_4, so 2_1 is the newest though 2_2 stands behind it by name.
    want = names(save(checkpoints, step, (1, 4), (1, 5), (2, 2), (10, 1), (2, 1)))
    if touch == "unpacked without times":
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for path in sorted(checkpoints.folder.iterdir()):
                archive.add(path, path.name)
        shutil.rmtree(checkpoints.folder)
        checkpoints.folder.mkdir()
        with tarfile.open(tmp_path / "a.tar") as archive:
            for member in archive:
                archive.extract(member, checkpoints.folder)
                os.utime(checkpoints.folder / member.name)
    else:
        for age, path in enumerate(checkpoints.numbered()):
            os.utime(path, (1e9, 1e9 - age * (touch == "reversed")))
    assert names(checkpoints.numbered()) == want
    assert checkpoints.newest_good()[0].path.stem == want[-1]


def test_the_oldest_by_saving_goes_first(checkpoints, step):
    checkpoints.keep = 2
    save(checkpoints, step, (5, 1), (6, 1), (2, 1))
    assert names(checkpoints.numbered()) == ["DDRNet23-6_1", "DDRNet23-2_1"]
    assert {path.name for path in checkpoints.folder.iterdir()} == {
        f"DDRNet23-{place}{suffix}" for place in ("6_1", "2_1") for suffix in (".ckpt", ".state")
    }


def test_weights_without_their_state_are_not_ours_to_remove_and_take_no_place(checkpoints, step):
    checkpoints.keep = 2
    save(checkpoints, step, (1, 1), (1, 2))
    (checkpoints.folder / "DDRNet23-9_9.ckpt").write_bytes(b"somebody's")
    (checkpoints.folder / "DDRNet23-1_1.state").unlink()
    save(checkpoints, step, (1, 3), (1, 4))
    assert sorted(names(checkpoints._files(".ckpt"))) == [f"DDRNet23-{place}" for place in ("1_1", "1_3", "1_4", "9_9")]


@pytest.mark.parametrize("suffix", [".ckpt", ".state"])
@pytest.mark.parametrize("size", [1 << 33, 1 << 40])
def test_a_file_larger_than_any_is_damaged_and_takes_neither_memory_nor_time(size, suffix, checkpoints, step):
    good, newest = save(checkpoints, step, (1, 1), (1, 2))
    os.truncate(newest.with_suffix(suffix), size)
    saved, complaints = checkpoints.newest_good()
    assert saved.path == good
    assert f"DDRNet23-1_2{suffix}: is damaged" in complaints[0]


def test_a_checkpoint_that_can_be_neither_replaced_nor_removed_is_told_before_training(checkpoints, step):
    checkpoints.save_best(step.network, 0.5)
    flag = ["chattr", "+i", checkpoints.best_path]
    if not shutil.which("chattr") or subprocess.run(flag, capture_output=True, check=False).returncode:
        pytest.skip("files cannot be closed here")
    try:
        with pytest.raises(UserError, match=r"_best\.ckpt: can be neither replaced nor removed"):
            checkpoints.lock()
    finally:
        subprocess.run(["chattr", "-i", checkpoints.best_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
@pytest.mark.parametrize(("owner", "fixed"), [(0, True), (NOBODY, False)])
def test_another_users_file_in_a_folder_of_all_cannot_be_replaced(owner, fixed, tmp_path):
    tmp_path.chmod(0o1777)
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", owner, owner)
    (tmp_path / "file").chmod(0o666)
    descriptor = os.open(tmp_path, os.O_RDONLY)  # as the folders above it are closed
    try:
        assert as_nobody(lambda: (os.fchdir(descriptor), str(is_fixed(Path("file"))))[1]) == str(fixed)
    finally:
        os.close(descriptor)


def test_a_checkpoint_that_cannot_say_its_number_keeps_its_place_by_name_and_is_complained_of(checkpoints, step):
    save(checkpoints, step, (1, 1), (2, 1), (3, 1))
    (checkpoints.folder / "DDRNet23-3_1.state").unlink()
    saved, complaints = checkpoints.newest_good()
    assert saved.path.stem == "DDRNet23-2_1"
    assert len(complaints) == 1
    assert "DDRNet23-3_1.state: is not there" in complaints[0]


def test_odd_entries_do_not_stop_a_run_that_has_a_good_checkpoint(checkpoints, step):
    good = save(checkpoints, step, (1, 1))[0]
    folder = checkpoints.folder
    (folder / "DDRNet23-9_9.ckpt").symlink_to("nowhere")
    (folder / "DDRNet23-8_8.ckpt").symlink_to("DDRNet23-8_8.ckpt")
    (folder / "DDRNet23-7_7.ckpt").mkdir()
    (folder / "DDRNet23-6_6.state").mkdir()
    os.mkfifo(folder / "DDRNet23-5_5.ckpt")
    (folder / ".DDRNet23-1_1.1.tmp.ckpt").mkdir()
    (folder / ".DDRNet23-1_1.2.tmp.ckpt").write_bytes(b"left by a killed run")
    checkpoints.lock()
    saved, complaints = checkpoints.newest_good()
    assert (saved.path, complaints) == (good, [])
    checkpoints.keep = 1
    save(checkpoints, step, (1, 2))
    assert names(checkpoints.numbered()) == ["DDRNet23-1_2"]
    assert not (folder / ".DDRNet23-1_1.2.tmp.ckpt").exists()


def begin_and_end(folder: Path, step: SmallStep, draws: bool = True) -> str:
    """What a run does in its folder, from its start on: the last step, and after it the end; where it failed."""
    at = "start"
    try:
        checkpoints = Checkpoints(folder / "ckpt_0", "DDRNet23", keep=2)
        checkpoints.lock()
        checkpoints.newest_good()
        metrics = Metrics(folder, 2, goes_on=True)
        write_run(checkpoints.folder, Config(), ["a", "b"], "python train.py")
        at = "end"
        checkpoints.save_best(step.network, 0.5)
        metrics.add({"epoch": 2, "step": 2, "loss": 1.0, "lr": 0.1})
        save(checkpoints, step, (2, 1))
        if draws:  # which takes longer than all the rest
            metrics.draw(np.ones(4, np.float32))
        checkpoints.save_last(step.network)
        checkpoints._lock.close()
    except UserError as error:
        return f"{at}: {error}"
    return ""


def put(kind: str, path: Path) -> None:
    """Let an entry of a kind take a file's place."""
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "somebody's").write_text("x")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    elif kind == "link elsewhere":
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
    elif kind == "empty":
        path.touch()
    elif kind == "closed":
        path.write_bytes(content)
        path.chmod(0)
    else:
        path.symlink_to({"link to nowhere": "nowhere", "loop": path.name, "device": "/dev/null"}[kind])


ENTRIES = [
    "ckpt_0/.lock", "ckpt_0/DDRNet23-1_1.ckpt", "ckpt_0/DDRNet23-1_1.state", "ckpt_0/DDRNet23-2_1.ckpt",
    "ckpt_0/DDRNet23-2_1.state", "ckpt_0/DDRNet23_best.ckpt", "ckpt_0/DDRNet23_best.json", "ckpt_0/DDRNet23.ckpt",
    "ckpt_0/config.yaml", "ckpt_0/classes.json", "metrics.jsonl", "curves.png",
]  # fmt: skip
KINDS = ["folder", "pipe", "socket", "link elsewhere", "link to nowhere", "loop", "device", "empty", "closed"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("whole")
    checkpoints = Checkpoints(folder / "ckpt_0", "DDRNet23", keep=5)
    save(checkpoints, SmallStep(), (1, 1))
    assert begin_and_end(folder, SmallStep()) == ""
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(ENTRIES)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_whatever_stands_in_a_files_place_a_run_ends_well_or_tells_before_it_trains(
    entry, kind, whole_run, step, tmp_path, monkeypatch
):
    """And there is a good checkpoint afterwards, whose files' places were taken or not."""
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    monkeypatch.chdir(folder)  # a socket's name is short
    put(kind, folder / entry)
    draws = "ckpt_0" not in entry
    if kind == "closed" and os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        said = as_nobody(lambda: begin_and_end(Path(), step, draws))
    else:
        said = begin_and_end(folder, step, draws)
    if said:
        assert said.startswith("start: ")
        assert Path(entry).name in said or "ckpt_0: cannot be written" in said
        assert kind in ("folder", "device", "pipe", "socket", "loop") or (kind, entry) == ("closed", "ckpt_0/.lock")
    else:
        last = read_saved(folder / "ckpt_0/DDRNet23-2_1.ckpt")
        assert last.cursor.epoch == 2
    assert Path("/dev/null").is_char_device()
    assert kind != "folder" or [path.read_text() for path in folder.rglob("somebody's")] == ["x"]


def test_a_state_alone_is_the_rest_of_a_killed_save_and_goes(checkpoints, step):
    save(checkpoints, step, (1, 1), (1, 2))
    (checkpoints.folder / "DDRNet23-1_2.ckpt").unlink()
    assert checkpoints.newest_good()[0].path.stem == "DDRNet23-1_1"
    save(checkpoints, step, (1, 3))
    assert not (checkpoints.folder / "DDRNet23-1_2.state").exists()


def test_states_of_earlier_versions_without_a_number_still_stand_in_order(checkpoints, step, monkeypatch):
    import src.trainers.checkpoint as module

    whole = module._write_state
    monkeypatch.setattr(
        module, "_write_state", lambda path, facts, arrays: whole(path, {**facts, "serial": None}, arrays)
    )
    save(checkpoints, step, (1, 9), (1, 10), (2, 1))
    monkeypatch.undo()
    save(checkpoints, step, (1, 1))
    assert names(checkpoints.numbered()) == ["DDRNet23-1_9", "DDRNet23-1_10", "DDRNet23-2_1", "DDRNet23-1_1"]


def test_a_better_best_of_another_course_of_the_run_is_kept(checkpoints, step):
    folder = checkpoints.folder
    checkpoints.save_best(step.network, 0.5)
    first = (folder / "DDRNet23_best.ckpt").read_bytes()
    step.network.weight.set_data(step.network.weight + 1)
    checkpoints.save_best(step.network, 0.4)
    assert (folder / "DDRNet23_best.1.ckpt").read_bytes() == first
    assert json.loads((folder / "DDRNet23_best.1.json").read_text()) == {"top1": 0.5}
    assert json.loads((folder / "DDRNet23_best.json").read_text()) == {"top1": 0.4}
    checkpoints.save_best(step.network, 0.45)
    assert not (folder / "DDRNet23_best.2.ckpt").exists()


@pytest.mark.parametrize("spoil", ["missing", "cut off", "rubbish", "no number"])
def test_a_best_that_nothing_says_how_good_it_is_is_kept(spoil, checkpoints, step):
    checkpoints.save_best(step.network, 0.5)
    first, scores = checkpoints.best_path.read_bytes(), checkpoints.best_path.with_suffix(".json")
    if spoil == "missing":
        scores.unlink()
    else:
        scores.write_text({"cut off": '{"top1": 0.', "rubbish": "\0", "no number": '{"top1": true}'}[spoil])
    checkpoints.save_best(step.network, 0.5)  # the same weights again, as after a kill between the two files
    assert not (checkpoints.folder / "DDRNet23_best.1.ckpt").exists()
    scores.unlink()
    step.network.weight.set_data(step.network.weight + 1)
    checkpoints.save_best(step.network, 0.6)
    assert (checkpoints.folder / "DDRNet23_best.1.ckpt").read_bytes() == first
    assert json.loads(scores.read_text()) == {"top1": 0.6}


@pytest.mark.parametrize(
    "content", [b"", b"x", b"DDRNet training state 1\n", b"DDRNet training state 1\n" + bytes(500)]
)
def test_rubbish_in_a_states_place_is_refused_by_name(content, checkpoints, step):
    path = save(checkpoints, step, (1, 1))[0]
    path.with_suffix(".state").write_bytes(content)
    with pytest.raises(UserError, match=r"DDRNet23-1_1\.state: is damaged"):
        read_saved(path)


def test_weights_are_written_as_mindspore_writes_them_byte_for_byte(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a.weight": rng.standard_normal((3, 4, 1, 1)).astype(np.float32), "b": np.arange(7, dtype=np.int32)}
    arrays["scalar"] = np.float32(2.5).reshape(())
    write_ckpt(tmp_path / "own.ckpt", arrays)
    values = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
    ms.save_checkpoint(values, str(tmp_path / "theirs.ckpt"), crc_check=True)
    assert (tmp_path / "own.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


FIRST = ROOT / "tests/golden/first_checkpoints"


def first_config(**changes) -> Config:
    """What the run was started with whose checkpoints those are."""
    keys = yaml.safe_load(TINY.read_text()) | {"epochs": 3, "drop_path_on": "branch"} | changes
    return Config(**keys)


def test_checkpoints_of_the_program_s_first_day_are_read_and_stand_in_order(checkpoints, step):
    shutil.copytree(FIRST, checkpoints.folder)
    slim = Checkpoints(checkpoints.folder, "DDRNet23Slim", keep=5)
    assert names(slim.numbered()) == ["DDRNet23Slim-2_5", "DDRNet23Slim-3_2"]
    saved, complaints = slim.newest_good()
    assert (saved.path.stem, complaints) == ("DDRNet23Slim-3_2", [])
    assert saved.cursor == Cursor(epoch=3, done=2, seconds=1.5, best=0.25, best_epoch=2)
    assert {name: array.tolist() for name, array in saved.arrays.items()} == {"updates": 7, "moments.bias": [1.5, -2]}
    weights = ms.load_checkpoint(str(saved.path))
    assert weights["network.weight"].asnumpy().tolist() == [[1, 2], [3, 4]]
    assert read_saved(slim.numbered()[0]).cursor == Cursor(epoch=3, done=0, best=0.25, best_epoch=2)
    slim.save(step.network, step, Config(), Cursor(1, 1), False)  # whatever comes now is newer
    assert names(slim.numbered())[-1] == "DDRNet23Slim-1_1"


def test_a_run_goes_on_from_them_where_its_keys_mean_what_they_meant_then():
    saved = read_saved(FIRST / "DDRNet23Slim-3_2.ckpt")
    assert saved.differences(first_config()) == []
    assert saved.differences(first_config(drop_path_on="auto")) == [
        "drop_path_on: 'branch' in the checkpoint, 'shortcut' now"
    ]
    assert saved.differences(first_config(momentum=0.8)) == ["momentum: 0.9 in the checkpoint, 0.8 now"]


@pytest.mark.parametrize("suffix", [".ckpt", ".state"])
def test_a_byte_that_changed_in_one_of_them_is_told(suffix, checkpoints):
    shutil.copytree(FIRST, checkpoints.folder)
    path = checkpoints.folder / f"DDRNet23Slim-3_2{suffix}"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"DDRNet23Slim-3_2\{suffix}: is damaged"):
        read_saved(checkpoints.folder / "DDRNet23Slim-3_2.ckpt")
