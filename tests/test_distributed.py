"""Several ranks, in real processes over the CPU's collectives: the same result, and nobody left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.args import Config
from src.data import create_dataset
from src.distributed.ranks import Ranks
from src.kernels.build import library
from src.metrics import Totals
from tests.conftest import ROOT, TINY, run_program
from tests.interrupted import outcome
from tests.mean_checks import SHAPES, gradients
from tests.processes import alive, end_all, finished, says, started, wait_until
from tests.rank_checks import BATCH
from tests.test_launcher import children, environment, free_ports
from tests.test_rank_table import table, written

CHECKS = ROOT / "tests/rank_checks.py"
MEAN_CHECKS = ROOT / "tests/mean_checks.py"
TRAIN = ROOT / "scripts/run_distribute_train_cpu.sh"
EVAL = ROOT / "scripts/run_distribute_eval_cpu.sh"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[str, list]:
    """What rank_checks.py found, a result for each rank: "1" on one server, "2" on two servers with a rank each."""
    found = {}
    for world, servers in ((1, ["127.0.0.1"]), (2, ["127.0.0.1", "127.0.0.2"])):
        folder = tmp_path_factory.mktemp(f"ranks{world}")
        options = [
            "--rank_table",
            written(folder, table(*servers, cards=1)),
            "--device_target",
            "CPU",
            "--folder",
            "rank",
        ]
        command = [sys.executable, "-m", "src.launcher.supervisor", *options, "--", sys.executable, CHECKS]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports())}
        processes = [started(command, folder, SERVER_ID=server, **common) for server in servers]
        try:
            assert [process.wait(150) for process in processes] == [0] * world, (folder / "output.txt").read_text()
        finally:
            end_all(folder)
        found[str(world)] = [dict(np.load(folder / f"rank{rank}/results.npz")) for rank in range(world)]
    return found


def test_ranks_know_their_places(ranks):
    assert [result["place"].tolist() for result in ranks["2"]] == [[0, 2, 2], [1, 2, 2]]
    assert ranks["1"][0]["place"].tolist() == [0, 1, 1]


def test_two_ranks_and_one_give_the_same_update_where_batch_norm_is_frozen(ranks):
    single, *both = ranks["1"] + ranks["2"]
    names = [name for name in single if name.startswith("frozen/")]
    assert {"frozen/conv.weight", "frozen/moments.conv.weight", "frozen/bn.gamma", "frozen/linear.bias"} <= set(names)
    for result in both:
        for name in names:
            np.testing.assert_allclose(result[name], single[name], rtol=2e-5, atol=2e-6, err_msg=name)
    assert all(np.array_equal(both[0][name], both[1][name]) for name in names)


def test_two_ranks_and_one_give_the_same_update_where_gradients_meet_in_memory(ranks):
    single, *both = ranks["1"] + ranks["2"]
    names = [name for name in single if name.startswith("shared/")]
    if library() is None:
        pytest.skip("there is no C++ compiler")
    assert {"shared/conv.weight", "shared/moments.conv.weight", "shared/bn.gamma", "shared/linear.bias"} <= set(names)
    assert [result["shares"].tolist() for result in (single, *both)] == [[False], [True], [True]]
    for result in both:
        for name in names:
            np.testing.assert_allclose(result[name], single[name], rtol=2e-5, atol=2e-6, err_msg=name)
            assert np.array_equal(result[name], both[0][name])
            of_mindspore = result[name.replace("shared", "frozen")]
            assert np.array_equal(result[name], of_mindspore)  # halving is exact, and a sum of two has one order


def test_two_ranks_and_one_give_the_same_averaged_weights(ranks):
    single, *both = ranks["1"] + ranks["2"]
    names = [name for name in single if name.startswith("averaged/")]
    assert {"averaged/conv.weight", "averaged/bn.moving_mean", "averaged/bn.moving_variance"} <= set(names)
    for result in both:
        for name in names:
            np.testing.assert_allclose(result[name], single[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_an_overflow_on_one_rank_is_one_on_all(ranks):
    for result in ranks["2"]:
        before, after = result["overflow/scale"]
        assert after == before / 2
        assert result["overflow/changed"].size == 0


def test_saturation_on_one_rank_is_an_overflow_on_all_and_forgotten_by_the_next_update(ranks):
    for result in ranks["2"]:
        before, after = result["saturation/scale"]
        assert after == before / 2 == result["saturation/next"]
        assert result["saturation/changed"].size == 0


def test_moving_statistics_differ_by_rank_and_are_averaged_over_the_ranks(ranks):
    first, second = ranks["2"]
    assert not np.allclose(first["statistics/own"], second["statistics/own"], atol=1e-3)
    expected = (first["statistics/own"].astype(np.float64) + second["statistics/own"]) / 2
    for result in (first, second):
        np.testing.assert_array_equal(result["statistics/mean"], expected.astype(np.float32))
    np.testing.assert_array_equal(first["statistics/variance"], second["statistics/variance"])


def test_totals_are_summed_exactly(ranks):
    expected = repr(Totals(images=2**41 + 1, loss=1 / 3 + 2 / 3, top1=2**34 + 2, top5=1))
    assert [result["totals"][0] for result in ranks["2"]] == [expected] * 2
    assert [result["add_up"].tolist() for result in ranks["2"]] == [["3", repr(0.1 + 0.1)]] * 2


def test_a_signal_to_one_rank_is_known_to_all(ranks):
    assert [result["agree"].tolist() for result in ranks["2"]] == [[15, 0]] * 2


def test_gathered_values_are_the_ranks_own_bit_for_bit(ranks):
    expected = np.array([[0, np.nan, -0.0], [1, np.nan, -0.0]])
    for result in ranks["2"]:
        assert result["gather"].tobytes() == expected.tobytes()


def test_every_rank_gets_rank_0_s_values(ranks):
    rng = np.random.default_rng(0)
    want = {name: rng.integers(0, 100, shape) for name, shape in (("a", (3, 5)), ("b", (7,)), ("c", ()), ("d", (3,)))}
    want["d"] = want["d"] % 2
    for result in ranks["2"]:
        for name, values in want.items():
            np.testing.assert_array_equal(result[f"handed/{name}"], values, err_msg=name)
        assert json.loads(str(result["facts"][0])) == {"é": [1, 2.5, None]}


def test_one_bit_of_difference_is_an_error_that_names_the_parameter(ranks):
    for result in ranks["2"]:
        assert "rank 1 and rank 0 differ in moments.conv.weight (1 of " in str(result["mismatch"][0])
    assert ranks["1"][0]["mismatch"][0] == "none"


def test_what_must_be_equal_and_is_not_is_an_error_that_names_the_ranks(ranks):
    for rank, result in enumerate(ranks["2"]):
        assert str(result["unequal"][0]) == (
            f"answer: rank 1 and rank 0 differ (here: {42 + rank}), which must be the same on all"
        )
    assert ranks["1"][0]["unequal"][0] == "none"


# Gradients that meet in the machine's memory.


def averaged(folder: Path, world: int, what: str = "") -> subprocess.CompletedProcess:
    """A job of mean_checks.py, which has ended."""
    launcher = [sys.executable, "-m", "src.launcher.supervisor", "--workers", world, "--device_target", "CPU"]
    command = [*launcher, "--folder", "rank", "--", sys.executable, MEAN_CHECKS, what]
    try:
        return finished(command, folder, timeout=150)
    finally:
        end_all(folder)


@pytest.fixture(scope="module", params=[2, 3])
def means(request, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What each of 2 and 3 ranks has in the end."""
    if library() is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("means")
    run = averaged(folder, request.param)
    assert run.returncode == 0, run.stdout
    return [dict(np.load(folder / f"rank{rank}/results.npz")) for rank in range(request.param)]


def test_means_in_shared_memory_are_bit_for_bit_the_same_on_all_ranks_whoever_comes_last(means):
    first = means[0]
    assert first["met"].all()
    for number in range(len(SHAPES)):
        want = first[f"mean/{number}/0/0"]
        for result in means:
            of_all = [result[f"mean/{number}/{mode}/{repeat}"] for mode in (0, 1) for repeat in range(4)]
            assert all(values.tobytes() == want.tobytes() and values.shape == want.shape for values in of_all)
    assert all(
        result[f"alone/{mode}"].tobytes() == first["mean/0/0/0"].tobytes() for result in means for mode in (0, 1)
    )


def test_means_in_shared_memory_are_the_ranks_sum_in_their_order(means):
    of_ranks = [gradients(rank, SHAPES) for rank in range(len(means))]
    for number, values in enumerate(zip(*of_ranks)):
        total = values[0]
        for other in values[1:]:
            total = total + other
        want = total * np.float32(1 / len(means))
        np.testing.assert_array_equal(means[0][f"mean/{number}/0/0"], want)


def test_means_in_shared_memory_are_those_of_mindspore_s_all_reduce(means):
    for result in means:
        for number in range(len(SHAPES)):
            own = [gradients(rank, SHAPES)[number] for rank in range(len(means))]
            largest = np.max(np.abs(own), axis=0)
            difference = np.abs(result[f"mean/{number}/1/0"] - result[f"theirs/{number}"])
            assert (difference <= 3e-7 * largest).all()


def test_a_rank_that_dies_while_gradients_are_averaged_ends_the_others_with_one_line(tmp_path):
    if library() is None:
        pytest.skip("there is no C++ compiler")
    before = set(Path("/dev/shm").iterdir())
    began = time.monotonic()
    run = averaged(tmp_path, 2, "dies")
    assert run.returncode == 128 + signal.SIGKILL
    assert time.monotonic() - began < 60
    log = (tmp_path / "rank0/log.txt").read_text()
    said = [line for line in log.split("averaging\n")[1].splitlines() if "DISTRIBUTED" not in line]
    assert said == ["error: rank 1 has ended in the middle of a step"]
    assert "rank 1 ended with signal 9" in run.stdout
    assert set(Path("/dev/shm").iterdir()) <= before
    assert not alive(tmp_path)


def test_ranks_that_cannot_share_memory_agree_on_that(tmp_path):
    if library() is None:
        pytest.skip("there is no C++ compiler")
    run = averaged(tmp_path, 2, "elsewhere")
    assert run.returncode == 0, run.stdout
    for rank in range(2):
        assert not np.load(tmp_path / f"rank{rank}/results.npz")["met"].any()
        assert "the ranks share no memory (Permission denied)" in (tmp_path / f"rank{rank}/log.txt").read_text()


def test_alone_nothing_is_exchanged():
    alone, totals = Ranks(), Totals(images=3, loss=0.5, top1=1, top5=2)
    assert alone.sum_totals(totals) == totals
    assert (alone.agree(15), alone.add_up(7), alone.hand_out_facts({"a": 1})) == (15, 7, {"a": 1})
    assert alone.gather(np.arange(3)).tolist() == [[0, 1, 2]]
    alone.average([])
    alone.check_identical([])


def coloured(folder: Path, split: str, images: int) -> Path:
    """Images of one colour each, all different, in two classes."""
    from PIL import Image

    for number in range(images):
        target = folder / split / f"class{number % 2}"
        target.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 10 * number + 5).save(target / f"{number}.png")
    return folder


def plain(folder: Path, **keys) -> Config:
    """A configuration that leaves colours as they are."""
    return Config(
        data_url=str(folder), num_classes=2, image_size=32, crop_pct=1.0, auto_augment="", color_jitter=0.0, hflip=0.0,
        mix_up=0.0, cutmix=0.0, num_parallel_workers=1, **keys,
    )  # fmt: skip


def shown(images: np.ndarray) -> list[float]:
    return images[:, 0].mean(axis=(1, 2)).round(3).tolist()


def test_no_training_image_goes_to_two_ranks_and_others_are_left_out_each_epoch(tmp_path):
    config = plain(coloured(tmp_path, "train", 23), batch_size=3)
    ranks = [create_dataset(config, "train", rank, world=2) for rank in range(2)]
    left_out = []
    colours = set(shown(np.concatenate([batch[0] for batch in create_dataset(
        config.model_copy(update={"batch_size": 1}), "train").epoch(1)])))  # fmt: skip
    assert len(colours) == 23
    for epoch in range(1, 6):
        seen = [colour for rank in ranks for images, _ in rank.epoch(epoch) for colour in shown(images)]
        assert len(seen) == 23 // 6 * 6
        assert len(set(seen)) == len(seen)
        left_out.append(frozenset(colours - set(seen)))
    assert len(set(left_out)) > 1


@pytest.mark.parametrize(("images", "world"), [(7, 2), (5, 4), (3, 4)])
def test_every_validation_image_counts_once_on_unequal_shares(tmp_path, images, world):
    config = plain(coloured(tmp_path, "val", images), batch_size=2)
    ranks = [create_dataset(config, "val", rank, world) for rank in range(world)]
    seen = [
        colour
        for rank in ranks
        for batch, labels in rank.epoch()
        for colour in shown(batch[np.flatnonzero(labels >= 0)])
    ]
    assert len(seen) == len(set(seen)) == images


# Whole jobs: train.py and eval.py through the scripts.


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """Where the jobs below run, one after the other: 3 updates an epoch, and an odd number of validation images."""
    path = tmp_path_factory.mktemp("jobs")
    shutil.copytree(digits, path / "digits")
    for label in range(10):
        for surplus in sorted((path / f"digits/train/{label}").iterdir())[5:]:
            surplus.unlink()
    next((path / "digits/val/3").iterdir()).unlink()
    yield path
    end_all(path)


def epochs(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> list:
    """The command line of a job of two ranks, each of which compiles its step once."""
    cache = tmp_path_factory.mktemp("steps")
    flags = ["--data_url", "digits", "--batch_size", BATCH, "--save_steps", 1, "--compile_cache", cache]
    return ["bash", TRAIN, 2, TINY, *flags]


@pytest.fixture(scope="module")
def stopped(job, folder) -> Path:
    """A job one of whose ranks was killed, that started again by itself, and that Ctrl-C then stopped."""
    process = started([*job, "--max_restarts", 1], folder, PYTHON=sys.executable)
    log = folder / "train_parallel0/log.txt"
    wait_until(says(log, "epoch 1/2 step 2/3"), 240, "training begins")
    [victim] = [pid for pid in children(process.pid) if environment(pid).get("RANK_ID") == "1"]
    os.kill(victim, signal.SIGKILL)
    wait_until(says(folder / "output.txt", "restart 1 of 1"), 30, "the job ends within 30 s and starts again")
    wait_until(says(log, "epoch 2/2 step 1/3"), 240, "training goes on")
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 128 + signal.SIGINT, (folder / "output.txt").read_text()
    return folder


def test_a_killed_rank_is_noticed_and_the_job_goes_on_from_the_newest_checkpoint(stopped):
    output = (stopped / "output.txt").read_text()
    assert "rank 1 ended with signal 9" in output
    assert output.count("going on from") == 1
    assert "in epoch 1 after step" in output


def test_ctrl_c_ends_all_ranks_and_leaves_a_checkpoint(stopped):
    assert not alive(stopped)
    saved = (stopped / "output.txt").read_text().split(", saved ")[1].split(";")[0]
    assert Path(saved).name.startswith("DDRNet23Slim-2_")
    assert Path(saved).with_suffix(".state").exists()


def test_the_averaged_weights_of_two_ranks_are_as_good_as_weights_get(stopped):
    for line in (stopped / "metrics.jsonl").read_text().splitlines():
        scores = json.loads(line)
        assert scores["ema_val_loss"] < scores["val_loss"] + 1


def test_only_rank_0_writes(stopped):
    names = {path.relative_to(stopped).as_posix() for path in stopped.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith(("digits/", "ckpt_0/DDRNet23Slim-"))}
    assert names == {
        "output.txt",
        "metrics.jsonl",
        "curves.png",
        "ckpt_0/.lock",
        "ckpt_0/DDRNet23Slim_best.ckpt",
        "ckpt_0/DDRNet23Slim_best.json",
        "ckpt_0/classes.json",
        "ckpt_0/config.yaml",
        "train_parallel0/heartbeat",
        "train_parallel0/log.txt",
        "train_parallel0/scheduler.txt",
        "train_parallel1/heartbeat",
        "train_parallel1/log.txt",
    }
    assert "epoch 1" not in (stopped / "train_parallel1/log.txt").read_text()


def test_two_ranks_evaluate_to_what_one_does(stopped):
    flags = [TINY, "ckpt_0/DDRNet23Slim_best.ckpt", "--data_url", "digits", "--batch_size", 4]
    results = []
    for world in (1, 2):
        run = finished(["bash", EVAL, world, *flags], stopped, timeout=120, PYTHON=sys.executable)
        assert run.returncode == 0, run.stdout
        results.append([line for line in run.stdout.splitlines() if line.startswith(("Loss", "Top"))])
    assert len(results[0]) == 3
    assert results[1][1:] == results[0][1:]
    losses = [float(lines[0].split()[1]) for lines in results]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6, abs=1.1e-5)  # five digits are printed


def test_a_job_that_was_killed_and_stopped_ends_bit_for_bit_as_one_left_alone(job, stopped, tmp_path):
    """Weights, best weights, and metrics, in which losses are of all ranks' images, also of those before a kill."""
    shutil.copytree(stopped, tmp_path / "killed", ignore=shutil.ignore_patterns("train_parallel*"))
    shutil.copytree(stopped / "digits", tmp_path / "alone/digits")
    for name, more in (("killed", ["--resume", "auto"]), ("alone", [])):
        run = finished([*job, *more], tmp_path / name, timeout=240, PYTHON=sys.executable)
        assert run.returncode == 0, run.stdout
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "alone")


def test_one_rank_can_go_on_where_two_have_stopped(stopped):
    flags = ["--ddr_config", TINY, "--data_url", "digits", "--batch_size", 2 * BATCH, "--resume", "auto"]
    alone = run_program("train.py", *flags, "--graph_mode", 1, cwd=stopped)  # saves the compilation
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "in epoch 2 after step" in alone.stdout
    assert epochs(stopped) == [1, 2]
