"""The summary's numbers, against counters that are not ours."""

import subprocess
import sys

import mindspore as ms
import pytest

from src.models import ARCHITECTURES, create_model
from src.models.summary import Stage, format_table, summarize


@pytest.fixture(autouse=True)
def _pynative():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_totals_are_those_of_pytorch_s_counter(arch):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from tests.torch_yardstick import FACTORIES

    reference = FACTORIES[arch]().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference(torch.zeros(1, 3, 160, 160))
    stages = summarize(create_model(arch, flavour="paper"), 160)
    assert 2 * sum(stage.multiply_adds for stage in stages) == counter.get_total_flops()
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in reference.named_children()}
    assert {stage.name: stage.parameters for stage in stages} == parameters


def test_stages_stand_in_the_order_in_which_they_run_with_their_shapes():
    stages = {stage.name: stage for stage in summarize(create_model("DDRNet23", 10), 64)}
    assert list(stages)[:5] == ["conv1", "layer1", "layer2", "layer3", "layer3_"]
    assert stages["conv1"].output == (64, 16, 16)
    assert stages["layer4_"].output == (128, 8, 8)
    assert stages["layer4"].output == (512, 2, 2)
    assert stages["linear"].output == (10,)
    first, second = 32 * 32 * 64 * 3 * 9, 16 * 16 * 64 * 64 * 9
    assert stages["conv1"].multiply_adds == first + second
    assert stages["linear"].multiply_adds == 2048 * 10


def test_a_summary_leaves_the_network_as_it_was():
    network = create_model("DDRNet23Slim", 10).set_train(True)
    assert summarize(network, 64) == summarize(network, 64)
    assert network.training
    assert network.layer1.training
    assert not any(cell._forward_hook for _, cell in network.cells_and_names())


def test_the_table_has_a_line_for_each_stage_and_the_totals():
    stages = [Stage("conv1", (32, 56, 56), 1000, 2_000_000), Stage("linear", (10,), 234, 7)]
    lines = format_table(stages).splitlines()
    assert lines[0].split() == ["stage", "output", "parameters", "multiply-adds"]
    assert lines[2].split() == ["conv1", "32x56x56", "1,000", "2,000,000"]
    assert lines[-1].split() == ["total", "1,234", "2,000,007"]
    assert len({len(line) for line in lines}) == 1


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "src.models.summary", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_prints_a_table_with_the_published_number_of_parameters():
    done = command("--arch", "DDRNet23Slim", "--flavour", "paper", "--image_size", "96")
    assert done.returncode == 0, done.stderr
    total = done.stdout.splitlines()[-1].split()
    assert total[:2] == ["total", "7,574,664"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "DDRNet9"], ["DDRNet9", "DDRNet39"]),
        (["--image_size", "16"], ["image_size", "32"]),
        (["--num_classes", "1000000"], ["num_classes", "100000"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
