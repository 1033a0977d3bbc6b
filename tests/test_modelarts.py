"""ModelArts' object store: a stand-in for its moxing package that really copies, between folders on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.data.data_utils.modelarts import Outbox
from tests.conftest import ROOT, TINY, run_program
from tests.processes import alive, end_all, finished, started, wait_until

# obs://bucket/path is <store>/bucket/path. Every call is noted in calls.txt; "broken" in an address makes it fail.
MOXING = """
import os, shutil, time
from pathlib import Path

STORE = Path(os.environ["STORE"])

class file:
    @staticmethod
    def _path(name):
        with (STORE / "calls.txt").open("a") as calls:
            calls.write(f"{name}\\n")
        if "broken" in name or (STORE / "down").exists():
            raise OSError("the store does not answer")
        return STORE / name[len("obs://"):] if name.startswith("obs://") else Path(name)

    @staticmethod
    def copy_parallel(source, target):
        source, target = file._path(source), file._path(target)
        if not source.is_dir():
            raise OSError("No files to copy")
        for path in sorted(source.rglob("*")):
            if path.is_file():
                place = target / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
                time.sleep(float(os.environ.get("SECONDS_A_FILE", "0")))

    @staticmethod
    def copy(source, target):
        target = file._path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file._path(source), target)

    @staticmethod
    def exists(name):
        return file._path(name).exists()

    @staticmethod
    def remove(name):
        file._path(name).unlink()
"""

STAGE = """
import json, logging, sys
from src.args import Config
from src.data.data_utils.modelarts import stage
from src.errors import TrainingStopped
logging.basicConfig(level=logging.INFO)
try:
    config, _ = stage(Config(run_modelarts=True, data_url=sys.argv[1], train_url="obs://bucket/out"), writes=False)
except TrainingStopped as error:
    sys.exit(f"error: {error}")
print(config.data_url, flush=True)
"""


@pytest.fixture
def store(tmp_path, digits):
    """An object store with the digits, a machine to copy to, and programs' environment to reach both."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "moxing.py").write_text(MOXING)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "store/bucket").mkdir(parents=True)
    (tmp_path / "store/bucket/digits").symlink_to(digits)
    (tmp_path / "machine").mkdir()
    yield tmp_path
    end_all(tmp_path)


def environment(folder: Path) -> dict[str, str]:
    """For `started` and `finished`: the package, the store, and a temporary folder of their own."""
    path = os.pathsep.join([str(ROOT), str(folder / "package")])
    return {"PYTHONPATH": path, "STORE": str(folder / "store"), "TMPDIR": str(folder / "machine")}


def calls(folder: Path) -> list[str]:
    path = folder / "store/calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_is_copied_once_a_server_and_all_ranks_get_it(store, digits):
    command = [sys.executable, store / "stage.py", "obs://bucket/digits"]
    processes = [
        subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment(store), "SECONDS_A_FILE": "0.01"},
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert calls(store).count("obs://bucket/digits") == 1
    [place] = {output.splitlines()[-1] for output in outputs}
    assert files(Path(place)) == files(digits)


def test_a_copy_that_was_killed_is_made_anew_and_its_lock_does_no_harm(store, digits):
    command = [sys.executable, store / "stage.py", "obs://bucket/digits"]
    process = started(command, store, **environment(store), SECONDS_A_FILE="0.05")
    wait_until(lambda: len(list((store / "machine").rglob("*.png"))) >= 5, 30, "the copy has begun")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((store / "machine").rglob(".lock"))
    run = finished(command, store, **environment(store))
    assert run.returncode == 0, run.stdout
    assert files(Path(run.stdout.splitlines()[-1])) == files(digits)


def test_a_failed_copy_ends_all_ranks(store):
    began = time.monotonic()
    supervisor = [sys.executable, "-m", "src.launcher.supervisor", "--workers", 2, "--device_target", "CPU"]
    rank = ["--", sys.executable, store / "stage.py", "obs://bucket/broken"]
    run = finished([*supervisor, *rank], store, **environment(store))
    assert run.returncode == 1
    assert "data_url: obs://bucket/broken cannot be copied to" in run.stdout
    assert "the store does not answer" in run.stdout
    assert time.monotonic() - began < 30
    assert not alive(store)
    assert not list((store / "machine").rglob("*.partial"))


def test_an_empty_address_is_an_error(store):
    run = finished([sys.executable, store / "stage.py", "obs://bucket/nothing"], store, **environment(store))
    assert (run.returncode, "obs://bucket/nothing cannot be copied" in run.stdout) == (1, True)


@pytest.fixture
def outbox(store, monkeypatch):
    """An outbox over an empty folder of outputs."""
    for name, value in environment(store).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(store / "package"))
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    folder = store / "outputs"
    (folder / "ckpt_0").mkdir(parents=True)
    yield Outbox(folder, "obs://bucket/out/")
    sys.modules.pop("moxing", None)


def test_outputs_are_sent_when_they_are_new_and_removed_when_they_are_gone(store, outbox):
    there = store / "store/bucket/out"
    (outbox.folder / "ckpt_0/a-1_5.ckpt").write_bytes(b"weights")
    (outbox.folder / "ckpt_0/a-1_5.state").write_bytes(b"state")
    (outbox.folder / "ckpt_0/.lock").write_bytes(b"")
    outbox.send()
    assert files(there) == {"ckpt_0/a-1_5.ckpt": b"weights", "ckpt_0/a-1_5.state": b"state"}
    sent = [call for call in calls(store) if call.startswith("obs://")]
    assert [Path(call).suffix for call in sent] == [".state", ".ckpt"]  # weights alone would be somebody's loss
    outbox.send()
    assert [call for call in calls(store) if call.startswith("obs://")] == sent
    (outbox.folder / "ckpt_0/a-1_5.ckpt").unlink()
    (outbox.folder / "ckpt_0/a-1_5.state").write_bytes(b"another")
    outbox.send()
    assert files(there) == {"ckpt_0/a-1_5.state": b"another"}


def test_a_store_that_is_down_for_a_while_costs_nothing_but_at_the_end_it_is_an_error(store, outbox):
    (outbox.folder / "a.ckpt").write_bytes(b"weights")
    (store / "store/down").touch()
    outbox.send()
    with pytest.raises(RuntimeError, match=r"train_url: cannot copy obs://bucket/out/a\.ckpt"):
        outbox.send(last=True)
    (store / "store/down").unlink()
    outbox.send(last=True)
    assert files(store / "store/bucket/out") == {"a.ckpt": b"weights"}


def test_training_reads_from_the_store_writes_to_it_and_resumes_from_it(store):
    flags = ["--ddr_config", TINY, "--run_modelarts", True, "--epochs", 1]
    flags += ["--data_url", "obs://bucket/digits", "--train_url", "obs://bucket/out"]
    first = run_program("train.py", *flags, cwd=store / "machine", env=environment(store))
    assert first.returncode == 0, first.stdout + first.stderr
    out = store / "store/bucket/out"
    assert {"metrics.jsonl", "curves.png", "ckpt_0/DDRNet23Slim.ckpt", "ckpt_0/DDRNet23Slim-1_5.state"} <= set(
        files(out)
    )

    for path in sorted((store / "machine").rglob("*"), reverse=True):  # another machine
        path.rmdir() if path.is_dir() else path.unlink()
    again = run_program("train.py", *flags, "--resume", "auto", cwd=store / "machine", env=environment(store))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "in epoch 2 after step 0" in again.stdout
    assert [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--data_url", "obs://bucket/digits", "--train_url", "obs://bucket/out"],
            "run_modelarts: needs the package moxing",
        ),
        (["--data_url", "data"], "data_url: is 'data'; with run_modelarts it must be an address"),
        (["--data_url", "obs://bucket/digits", "--train_url", "here"], "train_url: is 'here'"),
    ],
)
def test_what_is_missing_is_one_line(store, flags, message):
    known = environment(store)
    if "moxing" in message:
        known["PYTHONPATH"] = str(ROOT)
    run = run_program("train.py", "--ddr_config", TINY, "--run_modelarts", True, *flags, cwd=store, env=known)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {message}"), run.stderr
    assert run.stderr.count("\n") == 1
