"""Runs that are interrupted end as if nothing had happened: real processes, really killed."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.args import Config, parse_args
from src.errors import TrainingStopped, UserError
from src.trainers.checkpoint import Checkpoints, Cursor, read_saved
from tests.conftest import TINY, command, run_program
from tests.interrupted import kill_when, log_of, outcome, start, wait_for

KEEP = ["--save_steps", "2", "--keep_checkpoint_max", "3"]


@pytest.fixture(scope="module")
def flags(digits, tmp_path_factory) -> list:
    cache = ["--compile_cache", str(tmp_path_factory.mktemp("cache"))]
    return ["--ddr_config", str(TINY), "--data_url", str(digits), *KEEP, *cache]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory) -> Path:
    """A run that was left alone, and compiled its step itself; its folder ends with three numbered checkpoints."""
    folder = tmp_path_factory.mktemp("alone")
    done = run_program("train.py", *flags, "--compile_cache", "", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(alone, tmp_path) -> Path:
    """The folder of that run, to spoil."""
    shutil.copytree(alone, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGTERM, "epoch 1/2 step 3/5"),
        (signal.SIGINT, "epoch 2/2 step 1/5"),
        (signal.SIGTERM, "epoch 1/2 step 5/5"),
        (signal.SIGHUP, "epoch 1/2 step 2/5"),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(number, said, flags, alone, tmp_path):
    process = start(flags, tmp_path)
    code = kill_when(process, number, lambda: said in log_of(tmp_path))
    assert code == 128 + number
    assert f"stopped by signal {number:d}, saved ckpt_0/DDRNet23Slim-" in log_of(tmp_path)
    assert "to go on, add --resume auto to the same command" in log_of(tmp_path)
    assert start([*flags, "--resume", "auto"], tmp_path).wait(timeout=200) == 0
    assert outcome(tmp_path) == outcome(alone)


def test_kill_9_at_random_moments_loses_nothing(flags, alone, tmp_path):
    rng = random.Random(os.environ.get("KILL_SEED", "1"))
    for _ in range(3):
        before = len(log_of(tmp_path))
        steps = rng.randint(1, 4)
        process = start([*flags, "--resume", "auto"], tmp_path)
        kill_when(process, signal.SIGKILL, lambda: log_of(tmp_path, before).count("img/s") >= steps)  # noqa: B023
        assert process.returncode in (-signal.SIGKILL, 0)
    assert start([*flags, "--resume", "auto"], tmp_path).wait(timeout=200) == 0
    assert outcome(tmp_path) == outcome(alone)


def test_auto_starts_afresh_where_there_is_nothing_and_says_so(flags, tmp_path):
    process = start([*flags, "--resume", "auto"], tmp_path)
    kill_when(process, signal.SIGKILL, lambda: "configuration" in log_of(tmp_path))
    assert "resume: no checkpoint in ckpt_0, starting afresh" in log_of(tmp_path)


class SmallStep(nn.Cell):
    """A network of six numbers and a step around it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Dense(2, 2)
        self.updates = ms.Parameter(ms.Tensor(0), name="updates")

    def state(self) -> dict[str, ms.Parameter]:
        return {"updates": self.updates}


def test_the_newest_is_the_last_that_was_saved_also_where_the_clock_was_set_back(tmp_path):
    step, checkpoints = SmallStep(), Checkpoints(tmp_path, "DDRNet23", keep=2)
    paths = [checkpoints.save(step.network, step, Config(), Cursor(epoch, 1), True) for epoch in (9, 10)]
    tomorrow = time.time() + 24 * 3600
    for path in paths:
        os.utime(path, (tomorrow, tomorrow + paths.index(path)))
    last = checkpoints.save(step.network, step, Config(), Cursor(11, 1), True)
    assert checkpoints.newest_good()[0].path == last
    assert checkpoints.numbered() == [paths[1], last]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    step, checkpoints = SmallStep(), Checkpoints(tmp_path, "DDRNet23", keep=2)
    good = checkpoints.save(step.network, step, Config(), Cursor(1, 1), True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    step.network.weight.set_data(ms.Tensor(np.array([[1, np.nan], [0, 0]], np.float32)))
    with pytest.raises(TrainingStopped, match=r"network\.weight is no longer finite, and nothing was saved"):
        checkpoints.save(step.network, step, Config(), Cursor(2, 1), True)
    with pytest.raises(TrainingStopped):
        checkpoints.save_best(step.network, 0.5)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpoints.newest_good()[0].path == good


def newest(folder: Path) -> Path:
    return folder / "ckpt_0" / "DDRNet23Slim-2_5.ckpt"


SPOIL = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "flipped": lambda path: flip(path),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".ckpt", ".state"])
@pytest.mark.parametrize("kind", SPOIL)
def test_a_damaged_checkpoint_is_never_loaded(kind, suffix, copy):
    """auto takes the one before it and says so; an explicit path is an error that names the file."""
    SPOIL[kind](newest(copy).with_suffix(suffix))
    with pytest.raises(UserError, match=rf"DDRNet23Slim-2_5\{suffix}: is (damaged|not there)"):
        read_saved(newest(copy))
    saved, complaints = Checkpoints(copy / "ckpt_0", "DDRNet23Slim", 3).newest_good()
    assert saved.path.name == "DDRNet23Slim-2_4.ckpt"
    assert len(complaints) == (0 if (kind, suffix) == ("missing", ".ckpt") else 1)


def test_going_on_from_a_damaged_newest_checkpoint_ends_the_same(flags, alone, copy):
    flip(newest(copy))
    (copy / "ckpt_0" / "DDRNet23Slim.ckpt").unlink()
    done = run_program("train.py", *flags, "--resume", "auto", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert "DDRNet23Slim-2_5.ckpt: is damaged" in done.stdout
    assert "the one before it is taken" in done.stdout
    assert outcome(copy) == outcome(alone)


@pytest.mark.parametrize("kind", ["damaged", "without their states"])
def test_checkpoints_of_which_none_is_good_stop_the_run_and_stay(kind, flags, copy):
    for path in (copy / "ckpt_0").glob("*-*"):
        if kind == "damaged" and path.suffix == ".ckpt":
            path.write_bytes(path.read_bytes()[:-1000])
        elif kind != "damaged" and path.suffix == ".state":
            path.unlink()
    before = {path.name: path.read_bytes() for path in (copy / "ckpt_0").iterdir()}
    done = run_program("train.py", *flags, "--resume", "auto", cwd=copy)
    assert done.returncode == 2
    assert "holds checkpoints, but none that a run can go on from" in done.stderr
    assert "DDRNet23Slim-2_5" in done.stderr
    assert {path.name: path.read_bytes() for path in (copy / "ckpt_0").iterdir()} == before


def test_what_a_killed_run_was_writing_is_swept_whichever_file_it_was(copy):
    written = [path for path in copy.rglob("*") if path.is_file() and path.name not in (".lock", "log.txt")]
    assert {"metrics.jsonl", "curves.png", "config.yaml", "classes.json"} <= {path.name for path in written}
    halves = [path.with_name(f".{path.stem}.4711.tmp{path.suffix}") for path in written]
    for half in halves:
        half.write_bytes(b"half")
    Checkpoints(copy / "ckpt_0", "DDRNet23Slim", 3).lock()
    assert not [half for half in halves if half.exists()]


def test_going_on_with_other_data_is_told(flags, copy, digits, tmp_path):
    shutil.copytree(digits, tmp_path / "other")
    next((tmp_path / "other" / "train" / "3").iterdir()).unlink()
    done = run_program("train.py", *flags, "--resume", "auto", "--data_url", tmp_path / "other", cwd=copy)
    assert done.returncode == 2
    assert "training images in data_url: 80 in the checkpoint, 79 now" in done.stderr


def test_keys_that_change_the_run_are_listed_and_harmless_ones_are_not(flags, alone):
    saved = read_saved(newest(alone))

    def differences(*more: str) -> list[str]:
        return saved.differences(parse_args([*flags, *more])[0])

    assert differences("--num_parallel_workers", "1", "--device_id", "3", "--data_url", "x", "--eval_every", "2") == []
    assert differences("--batch_size", "8", "--accumulation_step", "2") == []
    assert differences("--base_lr", "0.2", "--seed", "5") == [
        "base_lr: 0.4 in the checkpoint, 0.2 now", "seed: 0 in the checkpoint, 5 now",
    ]  # fmt: skip
    assert differences("--batch_size", "8") == [
        "batch_size x device_num x accumulation_step: 16 in the checkpoint, 8 now"
    ]


def test_a_checkpoint_from_before_a_key_says_what_runs_did_then(flags, alone):
    saved = read_saved(newest(alone))
    later = ("drop_path_on", "mixup_group")
    config = {key: value for key, value in saved.facts["config"].items() if key not in later}

    def differences(then: dict, *more: str) -> list[str]:
        before = replace(saved, facts={**saved.facts, "config": {**config, **then}})
        return before.differences(parse_args([*flags, *more])[0])

    idle, acting = {"drop_path_rate": 0.0, "lr_gamma": 0.1}, {"drop_path_rate": 0.2, "lr_gamma": 0.1}
    assert differences(idle, "--drop_path_rate", "0.0") == []
    assert differences(acting, "--drop_path_on", "branch") == []
    assert differences(acting) == ["drop_path_on: 'branch' in the checkpoint, 'shortcut' now"]
    assert differences(
        {**acting, "lr_scheduler": "exp_lr"}, "--drop_path_on", "branch", "--lr_scheduler", "exp_lr"
    ) == ["lr_gamma: 0.1 in the checkpoint, 0.97 now"]
    wide = {"drop_path_rate": 0.0, "batch_size": 1024, "device_num": 2}
    assert "mixup_group: 2048 in the checkpoint, 512 now" in differences(wide, "--drop_path_rate", "0.0")


def test_other_keys_need_resume_anyway(flags, copy):
    done = run_program("train.py", *flags, "--resume", "auto", "--epochs", 3, cwd=copy)
    assert done.returncode == 2
    assert done.stderr.count("epochs: 2 in the checkpoint, 3 now") == 1
    assert "--resume_anyway True" in done.stderr
    done = run_program("train.py", *flags, "--resume", "auto", "--epochs", 3, "--resume_anyway", "True", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert "epoch 3/3 step 5/5" in done.stdout


def test_a_second_run_in_the_same_folder_is_refused(flags, tmp_path):
    first = start(flags, tmp_path)
    try:
        wait_for(first, lambda: "configuration" in log_of(tmp_path))
        second = run_program("train.py", *flags, cwd=tmp_path)
        assert second.returncode == 2
        assert "ckpt_0: another run is writing there" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_a_full_disk_stops_the_run_and_leaves_the_older_checkpoints(flags, copy):
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

    before = {path.name: path.read_bytes() for path in (copy / "ckpt_0").glob("*.ckpt")}
    flip(newest(copy))
    done = subprocess.run(
        command("train.py", *flags, "--resume", "auto"),
        cwd=copy, capture_output=True, text=True, timeout=300, preexec_fn=small_files_only,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be written (File too large)" in done.stderr
    saved, _ = Checkpoints(copy / "ckpt_0", "DDRNet23Slim", 3).newest_good()
    assert saved.path.name == "DDRNet23Slim-2_4.ckpt"
    assert saved.path.read_bytes() == before["DDRNet23Slim-2_4.ckpt"]
    assert not [path for path in (copy / "ckpt_0").iterdir() if ".tmp" in path.name]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own that holds one checkpoint of the tiny run, 79 MB, and not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=130m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_stops_the_run_which_goes_on_when_there_is_room(flags, alone, small_disk):
    done = run_program("train.py", *flags, cwd=small_disk)
    assert done.returncode == 75
    assert "cannot be written (No space left on device)" in done.stderr
    files = [path.stat().st_size for path in (alone / "ckpt_0").iterdir() if path.suffix in (".ckpt", ".state")]
    pair = sum(newest(alone).with_suffix(suffix).stat().st_size for suffix in (".ckpt", ".state"))
    assert len(files) == 3 * 2 + 2  # and a fourth pair is whole before the oldest goes
    said = re.search(r"ckpt_0: 0\.1\d GB are free, and checkpoints will take (\S+) GB more; make room", done.stdout)
    assert float(said[1]) == pytest.approx((sum(files) + pair) / 1e9, abs=0.01)
    saved, complaints = Checkpoints(small_disk / "ckpt_0", "DDRNet23Slim", 3).newest_good()
    assert (saved.path.name, complaints) == ("DDRNet23Slim-1_2.ckpt", [])
    assert not [path for path in (small_disk / "ckpt_0").iterdir() if ".tmp" in path.name]
    subprocess.run(["mount", "-o", "remount,size=600m", str(small_disk)], check=True)
    done = run_program("train.py", *flags, "--resume", "auto", cwd=small_disk)
    assert done.returncode == 0, done.stderr
    assert "GB are free" not in done.stdout
    assert outcome(small_disk) == outcome(alone)


def test_a_folder_that_turns_read_only_stops_the_run_and_keeps_the_checkpoints(flags, tmp_path):
    folder = tmp_path / "ckpt_0"
    folder.mkdir()

    def closed(flag: str) -> bool:  # to root as well, which a mode is not
        return subprocess.run(["chattr", flag, str(folder)], capture_output=True, check=False).returncode == 0

    if not (shutil.which("chattr") and closed("+i") and closed("-i")):
        pytest.skip("folders cannot be closed here")
    process = start([*flags, "--epochs", "50"], tmp_path)
    try:
        wait_for(process, lambda: "epoch 1/50 step 3/5" in log_of(tmp_path))
        assert closed("+i")
        assert process.wait(timeout=100) == 2
    finally:
        closed("-i")
        process.kill()
    assert "cannot be written (Operation not permitted)" in log_of(tmp_path)
    saved, _ = Checkpoints(folder, "DDRNet23Slim", 3).newest_good()
    assert saved.facts["next_done"] >= 2


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
def test_a_folder_without_write_permission_is_a_clear_error(flags, digits, tmp_path):
    folder = tmp_path / "closed"
    (folder / "ckpt_0").mkdir(parents=True)
    (folder / "ckpt_0").chmod(0o555)
    for path in (folder, digits):  # pytest's folders are closed to others
        for parent in [path, *path.parents]:
            if parent.stat().st_uid == os.geteuid() and parent.name.startswith(
                ("pytest-", "popen-", "digits", "test_")
            ):
                parent.chmod(parent.stat().st_mode | 0o055)
    program = command("train.py", *flags)
    if os.geteuid() == 0:  # root writes everywhere
        program = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *program]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=200)
    if "Permission denied" in done.stderr and sys.executable in done.stderr:
        pytest.skip("another user may not run this Python")
    assert done.returncode == 2, done.stderr
    assert "ckpt_0: cannot be written (Permission denied); choose train_url" in done.stderr


def test_checkpoints_load_with_plain_mindspore_and_a_plain_recipes_weights_start_a_run(alone, flags, tmp_path):
    held = ms.load_checkpoint(str(newest(alone)))
    assert len(held) == 227
    plain = tmp_path / "plain.ckpt"
    ms.save_checkpoint([{"name": name, "data": value} for name, value in held.items()], str(plain))
    process = start([*flags, "--pretrained", str(plain)], tmp_path)
    kill_when(process, signal.SIGKILL, lambda: "configuration" in log_of(tmp_path))
    assert f"weights: {plain}\n" in log_of(tmp_path)
