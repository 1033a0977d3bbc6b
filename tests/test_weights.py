"""Weights in and out: every format, both frameworks' names, both flavours, and files that are not as they should be."""

import argparse
import os
import pickle
import subprocess
import sys
import tracemalloc

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.errors import UserError
from src.models import create_model
from src.trainers.checkpoint import save_weights
from src.weights.convert import convert, parameter_shapes
from src.weights.formats import WRAPPER_KEYS, read_weights, write_weights
from src.weights.load import load_pretrained
from src.weights.names import torch_name
from tests.golden import weights as golden

ARCH = "DDRNet23Slim"
CLASSES = 7
FORMATS = [".ckpt", ".safetensors", ".pth"]


@pytest.fixture(autouse=True)
def _pynative():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


def skip_without_torch(*paths):
    if any(str(path).endswith((".pth", ".pt")) for path in paths):
        pytest.importorskip("torch")


def golden_weights(flavour="zoo", arch=ARCH, num_classes=CLASSES):
    return {name: golden.value(name, shape) for name, shape in parameter_shapes(arch, flavour, num_classes).items()}


def network(flavour="zoo", num_classes=CLASSES):
    return create_model(ARCH, num_classes, flavour=flavour).set_train(False)


def values(cell):
    return {name: parameter.asnumpy().copy() for name, parameter in cell.parameters_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and one[name].tobytes() == two[name].tobytes() for name in one
    )


def error_of(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Reading and writing


@pytest.mark.parametrize("suffix", [*FORMATS, ".pt"])
def test_every_format_gives_back_what_was_written(tmp_path, suffix):
    skip_without_torch(suffix)
    path = str(tmp_path / f"a{suffix}")
    arrays = {"a.weight": golden.images(shape=(2, 3, 5)), "b.bias": np.float32([-0.0, 1e-42]), "c.count": np.int64(7)}
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    write_weights(path, arrays)
    assert same(read_weights(path), arrays)
    assert os.access(path, os.W_OK)


def test_a_checkpoint_of_mindspore_s_own_is_read_with_and_without_its_checksum(tmp_path):
    values = [{"name": "a.weight", "data": Tensor([[1.0, 2.0]])}, {"name": "half", "data": Tensor([0.5], ms.bfloat16)}]
    for crc_check in (False, True):
        path = str(tmp_path / f"{crc_check}.ckpt")
        ms.save_checkpoint(values, path, append_dict={"note": "text"}, crc_check=crc_check)
        arrays = read_weights(path)
        assert {name: array.tolist() for name, array in arrays.items()} == {"a.weight": [[1, 2]], "half": [0.5]}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_empty_or_foreign_file_is_named(tmp_path, suffix):
    skip_without_torch(suffix)
    path = tmp_path / f"a{suffix}"
    assert "No such file" in error_of(read_weights, str(path))
    path.write_bytes(b"")
    assert "empty" in error_of(read_weights, str(path))
    for content in (b"hello world\n" * 20, bytes(range(256)) * 4, b"PK\3\4" + bytes(range(200)), b"\x0a\x80\x80"):
        path.write_bytes(content)
        message = error_of(read_weights, str(path))
        assert message.startswith(str(path))
        assert "not a" in message or "holds no weights" in message
    path.unlink()
    path.mkdir()
    assert "directory" in error_of(read_weights, str(path))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path, suffix):
    skip_without_torch(suffix)
    path = tmp_path / f"a{suffix}"
    cell = network()
    write_weights(str(path), golden_weights())
    content = path.read_bytes()
    before = values(cell)
    for end in (1, 30, 3000, len(content) // 2, len(content) - 20, len(content) - 1):
        path.write_bytes(content[:end])
        message = error_of(load_pretrained, cell, str(path))
        assert message.startswith(str(path)), end
    assert same(values(cell), before)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth"])
def test_a_flipped_bit_fails_the_checksum(tmp_path, suffix):
    skip_without_torch(suffix)
    path = tmp_path / f"a{suffix}"
    write_weights(str(path), {"a": golden.images(shape=(1000,)), "b": golden.images(shape=(1000,))})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert "checksum" in error_of(read_weights, str(path))


def test_reading_a_damaged_checkpoint_prints_nothing(tmp_path, capfd):
    path = tmp_path / "a.ckpt"
    ms.save_checkpoint([{"name": f"p{i}", "data": Tensor(np.ones(500, np.float32))} for i in range(9)], str(path))
    content = path.read_bytes()
    path.chmod(0o600)
    other_size = content.replace(b"\x08\xf4\x03", b"\x08\xf4\x04")
    assert other_size != content
    for damaged in (content[:-7], content[:3] + b"\xff" * 20 + content[23:], b"x" * 99, other_size):
        path.write_bytes(damaged)
        error_of(read_weights, str(path))
    assert capfd.readouterr() == ("", "")


def test_an_unknown_ending_gives_the_known_ones(tmp_path):
    for function, arguments in ((read_weights, ()), (write_weights, ({},))):
        message = error_of(function, str(tmp_path / "a.h5"), *arguments)
        assert all(suffix in message for suffix in (*FORMATS, ".pt", ".bin", ".pth.tar", "a.h5"))


@pytest.mark.parametrize("ending", [".pth.tar", ".bin", ".PTH", ".Pt", ".CKPT", ".SafeTensors", ".PTH.TAR"])
def test_the_usual_endings_are_known_in_capitals_too(tmp_path, ending):
    skip_without_torch(".pth")
    path = str(tmp_path / f"a{ending}")
    arrays = {"a.weight": golden.images(shape=(2, 3))}
    write_weights(path, arrays)
    assert same(read_weights(path), arrays)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"a{ending}"]


def test_pipes_devices_and_huge_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    (tmp_path / "b.ckpt").symlink_to("/dev/zero")
    with (tmp_path / "c.safetensors").open("wb") as file:
        file.truncate(5 << 30)
    assert "no regular file" in error_of(read_weights, str(tmp_path / "a.pth"))
    assert "no regular file" in error_of(read_weights, str(tmp_path / "b.ckpt"))
    assert "4 GB" in error_of(read_weights, str(tmp_path / "c.safetensors"))


def checkpoint_of(tensor_type="Float32", dims=(2,), content=bytes(8), tag="a.weight"):
    from mindspore.train.checkpoint_pb2 import Checkpoint

    checkpoint = Checkpoint()
    record = checkpoint.value.add()
    record.tag = tag
    record.tensor.tensor_type, record.tensor.tensor_content = tensor_type, content
    record.tensor.dims.extend(dims)
    return checkpoint.SerializeToString()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tensor_type": ","}, "numbers of type ,"),
        ({"tensor_type": "O"}, "numbers of type O"),
        ({"tensor_type": "float32"}, "numbers of type float32"),
        ({"dims": (3,)}, "has not the 3 numbers"),
        ({"dims": (-1,)}, "has not the -1 numbers"),
        ({"dims": (1 << 62, 4)}, "has not the"),
        ({"dims": (1,) * 100_000}, "has not the 1x1"),
        ({"content": b"\0" * 7}, "has not the 2 numbers"),
        ({"tag": "x" * 10_000_000, "dims": (3,)}, "has not the 3 numbers"),
        ({"tag": "a\nerror: b", "dims": (3,)}, "a\\nerror: b"),
    ],
)
def test_rubbish_in_a_checkpoint_s_record_is_one_short_line(tmp_path, keys, said):
    path = tmp_path / "a.ckpt"
    path.write_bytes(checkpoint_of(**keys))
    message = error_of(read_weights, str(path))
    assert said in message
    assert len(message) < len(str(path)) + 400


def test_a_checkpoint_of_endless_records_is_refused_before_they_take_memory(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"\n\0" * 1_000_000)  # 1.6 GB, were they read as one message
    assert "has more than 50000 records" in error_of(read_weights, str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pth"])
def test_a_file_of_gigabytes_that_is_none_is_refused_by_its_first_bytes(tmp_path, suffix):
    with (tmp_path / f"a{suffix}").open("wb") as file:
        file.truncate(3 << 30)
    if suffix == ".pth":
        pytest.importorskip("torch")
    tracemalloc.start()
    assert "damaged" in error_of(read_weights, str(tmp_path / f"a{suffix}"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("old", [b"a.weight", b"Float32"])
def test_texts_that_are_no_utf_8_in_a_checkpoint_are_damage(tmp_path, old):
    path = tmp_path / "a.ckpt"
    path.write_bytes(checkpoint_of().replace(old, old[:-1] + b"\xa0"))
    assert "damaged, or not a MindSpore checkpoint" in error_of(read_weights, str(path))


@pytest.mark.parametrize(("kind", "numbers"), [("BF16", [1.0, -2.5]), ("F16", [1.0, -2.5]), ("F8_E4M3", None)])
def test_safetensors_of_every_type_are_read_or_named(tmp_path, kind, numbers):
    content = {"BF16": "803f20c0", "F16": "003c00c1", "F8_E4M3": "3840"}[kind]
    head = f'{{"a.weight":{{"dtype":"{kind}","shape":[2],"data_offsets":[0,{len(content) // 2}]}}}}'.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes.fromhex(content))
    if numbers is None:
        assert "a.weight has numbers of type F8_E4M3" in error_of(read_weights, str(path))
    else:
        assert read_weights(str(path))["a.weight"].tolist() == numbers


# PyTorch files


class RunsCode:
    """Pickled, it makes a folder when it is read the careless way."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, folder = tmp_path / "a.pth", tmp_path / "made by the file"
    content = {"conv1.0.weight": torch.ones(2), "extra": RunsCode(folder)}
    if zipped is None:
        path.write_bytes(pickle.dumps({"extra": RunsCode(folder)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = error_of(read_weights, str(path))
    assert "refused" in message
    assert "run code" in message
    assert "mkdir" in message
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_whole_pickled_module_and_a_torchscript_program_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "state_dict()" in error_of(read_weights, str(path))
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    assert "TorchScript" in error_of(read_weights, str(path))


def test_a_file_of_no_state_dict_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save([torch.ones(2)], path)
    assert "state dict" in error_of(read_weights, str(path))
    torch.save({"epoch": 3, "optimizer": {"state": {}}, "lr\n": 0.1}, path)
    assert "holds no weights; its keys are epoch, optimizer, lr\\n;" in error_of(read_weights, str(path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3},
        lambda state: {"model": state, "best": 0.5},
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1), "version": 2},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["bare", "state_dict", "model", "timm", "module", "state_dict+module"],
)
def test_a_state_dict_is_found_however_it_is_wrapped(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    from tests.torch_yardstick import golden_network

    state = golden_network(ARCH, CLASSES).state_dict()
    torch.save(wrap(state), tmp_path / "a.pth")
    cell = network("paper")
    assert load_pretrained(cell, str(tmp_path / "a.pth"), "paper") == []
    assert same(values(cell), golden_weights("paper"))


def few_tensors():
    import torch

    return {"conv1.0.weight": torch.arange(6.0).reshape(2, 3), "linear.bias": torch.tensor([1.5, -2.0])}


WRAPPED = {
    **{key: lambda state, key=key: {"epoch": 3, key: state, "optimizer": {"state": {0: {}}}} for key in WRAPPER_KEYS},
    "a key of one's own": lambda state: {"my_ddrnet": state, "epoch": 3},
    "wrapped twice": lambda state: {"checkpoint": {"state_dict": state, "epoch": 3}, "best": 0.7},
    "plain before averaged": lambda state: {
        "state_dict_ema": {name: value + 1 for name, value in state.items()},
        "state_dict": state,
    },
    **{
        f"prefix {prefix}": lambda state, prefix=prefix: {prefix + name: value for name, value in state.items()}
        for prefix in (
            "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "module.module.",
            "_orig_mod.module.", "module._orig_mod.model.", "ddrnet.", "my.own.net.",
        )
    },
    "prefix of some": lambda state: {
        ("module.backbone." if name.startswith("conv1") else "module.") + name: value for name, value in state.items()
    },
    "averaged model": lambda state: {"n_averaged": 7 + 0 * state["linear.bias"][0].long(), **{
        f"module.{name}": value for name, value in state.items()
    }},
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_that_people_have_are_found(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    torch.save(wrap(few_tensors()), tmp_path / "a.pth")
    found = {name: array.tolist() for name, array in read_weights(str(tmp_path / "a.pth")).items()}
    found.pop("n_averaged", None)
    assert found == {"conv1.0.weight": [[0, 1, 2], [3, 4, 5]], "linear.bias": [1.5, -2]}


def test_names_that_would_become_one_stay_apart(tmp_path):
    torch = pytest.importorskip("torch")
    two = {f"{prefix}.{name}": value for prefix in ("net", "model") for name, value in few_tensors().items()}
    torch.save(two, tmp_path / "a.pth")
    assert set(read_weights(str(tmp_path / "a.pth"))) == set(two)


@pytest.mark.parametrize("kind", ["parameters", "numpy", "strided", "double", "legacy"])
def test_weights_are_read_however_they_were_saved(tmp_path, kind):
    torch = pytest.importorskip("torch")
    import pathlib
    import random

    state = few_tensors()
    if kind == "parameters":
        content = {name: torch.nn.Parameter(value) for name, value in state.items()}
    elif kind == "numpy":
        content = {
            "state_dict": state, "best_acc": np.float64(0.5), "epoch": np.int64(3), "confusion": np.eye(3),
            "rng": np.random.get_state(), "python": random.getstate(), "path": pathlib.Path("a"),  # noqa: NPY002
            "type": np.dtype("f4"),
        }  # fmt: skip
    elif kind == "strided":
        content = {name: value.repeat_interleave(2, -1)[..., ::2] for name, value in state.items()}
    elif kind == "double":
        content = {name: value.double() for name, value in state.items()}
    else:
        content = state
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=kind != "legacy")
    arrays = read_weights(str(tmp_path / "a.pth"))
    assert {name: array.tolist() for name, array in arrays.items()} == {k: v.tolist() for k, v in state.items()}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


ODD = {
    "sparse": (lambda torch: torch.eye(3).to_sparse(), "sparse_coo tensor of float32"),
    "csr": (lambda torch: torch.eye(3).to_sparse_csr(), "sparse_csr tensor"),
    "meta": (lambda torch: torch.empty(3, device="meta"), "meta tensor"),
    "quantized": (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized tensor"),
    "float8": (lambda torch: torch.ones(3).to(torch.float8_e4m3fn), "type float8_e4m3fn"),
    "expanded": (lambda torch: torch.ones(1).half().expand(3 * 10**9), "declares 3000000000 numbers, more than"),
    "shared": (lambda torch: torch.ones(1 << 20).expand(1 << 10, 1 << 20), "more than the file holds"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_holds_no_plain_numbers_is_named(tmp_path, kind):
    torch = pytest.importorskip("torch")
    make, said = ODD[kind]
    torch.save({"a.weight": make(torch)}, tmp_path / "a.pth")
    message = error_of(read_weights, str(tmp_path / "a.pth"))
    assert "a.weight" in message
    assert said in message


@pytest.mark.filterwarnings("ignore")
def test_conjugate_and_negated_tensors_are_resolved(tmp_path):
    torch = pytest.importorskip("torch")
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    torch.save({"a": numbers.conj(), "b": torch._neg_view(torch.ones(2))}, tmp_path / "a.pth")
    arrays = read_weights(str(tmp_path / "a.pth"))
    assert arrays["a"].tolist() == [1 - 2j, 3 + 4j]
    assert arrays["b"].tolist() == [-1, -1]


@pytest.mark.parametrize("how", ["encrypted", "bomb", "deflated", "lzma", "directory"])
def test_a_zip_that_is_damaged_encrypted_or_a_bomb_is_one_line(tmp_path, how):
    torch = pytest.importorskip("torch")
    import zipfile

    torch.save(few_tensors(), tmp_path / "a.pth")
    path = tmp_path / "b.pth"
    packing = zipfile.ZIP_LZMA if how == "lzma" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(path, "w", packing) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        if how == "bomb":
            new.writestr("archive/data/9", bytes(100_000_000))
    content = bytearray(path.read_bytes())
    if how == "encrypted":
        for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            start = content.find(mark)
            while start >= 0:
                content[start + offset] |= 1
                start = content.find(mark, start + 1)
    start, end = (30, 400) if how != "directory" else (content.find(b"PK\1\2"), len(content))
    said = {"encrypted": "is encrypted", "bomb": "unpacks to"}.get(how, "damaged")
    for place in range(start, end, 7) if how not in ("encrypted", "bomb") else [0]:
        damaged = bytearray(content)
        if how not in ("encrypted", "bomb"):
            damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            read_weights(str(path))
        except UserError as error:
            assert str(error).startswith(str(path))
            if how in ("encrypted", "bomb"):
                assert said in str(error)
        else:
            assert how not in ("encrypted", "bomb")


DOUBLED = b"".join(b"q%ch%c\x86" % (place, place) for place in range(60))  # a pair of the same, of the same, ...


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (b"\x80\x02}K\x01" + DOUBLED + b"K\x01s.", "more objects in each other"),  # as a key: hashed for ever
        (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "more objects in each other"),  # a stack that overflows
        (b"\x80\x02" + b"]" * 1_100_000 + b".", "takes more than 1000000 steps"),
        (b"\x80\x02c" + b"A" * 100_000 + b"\nB\n)R.", "names a class by more than 500 characters"),
        (b"\x80\x02X\xa0\x86\1\0" + b"A" * 100_000 + b")R.", "calls what is no class"),
        (b"\x80\x04}.", "is of protocol 4"),
        (b"\x80\x02}", "is not whole"),
        (b"\x80\x02s.", "is not whole"),
    ],
    ids=["doubled", "deep", "long", "name", "call", "newer", "cut", "empty stack"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_build_too_much_is_refused_before_it_is_built(tmp_path, pickled, said, zipped):
    pytest.importorskip("torch")
    import zipfile

    path = tmp_path / "a.pth"
    path.write_bytes(pickled)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
    message = error_of(read_weights, str(path))
    assert message.startswith(f"{path}: damaged, or not a PyTorch file (its pickle ")
    assert said in message


def test_a_zip_with_a_member_twice_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    import zipfile

    path = tmp_path / "a.pth"
    torch.save(few_tensors(), path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"other weights")
    assert "a member stands in it twice" in error_of(read_weights, str(path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_float32(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    arrays = golden_weights()
    state = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in arrays.items()}
    torch.save(state, tmp_path / "a.pth")
    cell = network()
    load_pretrained(cell, str(tmp_path / "a.pth"))
    assert same(values(cell), {name: tensor.float().numpy() for name, tensor in state.items()})


def test_without_pytorch_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"anything")
    assert "pip install torch" in error_of(read_weights, str(tmp_path / "a.pth"))
    assert "pip install torch" in error_of(write_weights, str(tmp_path / "b.pth"), {"a": np.ones(1)})
    assert not (tmp_path / "b.pth").exists()
    write_weights(str(tmp_path / "a.safetensors"), {"a": np.ones(1)})
    assert list(read_weights(str(tmp_path / "a.safetensors"))) == ["a"]


# Loading


def test_training_s_checkpoint_loads_back(tmp_path):
    ms.set_seed(5)
    trained, fresh = network(), network()
    save_weights(trained, tmp_path / "a.ckpt")
    assert not same(values(trained), values(fresh))
    assert load_pretrained(fresh, str(tmp_path / "a.ckpt")) == []
    assert same(values(trained), values(fresh))


@pytest.mark.parametrize("optimizer", ["Momentum", "SGD", "RMSProp", "Lamb", "Adam"])
def test_an_optimizer_s_state_in_a_mindspore_checkpoint_is_passed_over(tmp_path, optimizer):
    cell = network()
    momentum = (0.9,) if optimizer == "Momentum" else ()
    state = getattr(ms.nn, optimizer)(cell.trainable_params(), 0.1, *momentum)
    step = ms.nn.TrainOneStepWithLossScaleCell(ms.nn.WithLossCell(cell, ms.nn.MSELoss()), state, Tensor(1024.0))
    content = {parameter.name: parameter for parameter in (*step.get_parameters(), *state.get_parameters())}
    assert len(content) > len(values(cell))
    entries = [{"name": name, "data": parameter} for name, parameter in content.items()]
    ms.save_checkpoint(
        entries, str(tmp_path / "a.ckpt"), append_dict={"epoch_num": 3, "step_num": 9, "learning_rate": 0.1}
    )
    fresh = network()
    assert load_pretrained(fresh, str(tmp_path / "a.ckpt")) == []
    assert same(values(fresh), values(cell))


def test_missing_surplus_and_misshapen_parameters_are_listed_and_nothing_is_loaded(tmp_path):
    arrays = golden_weights()
    for name in [name for name in arrays if name.startswith("layer4.")][:12]:
        del arrays[name]
    arrays["strange.weight"] = np.ones(3, np.float32)
    arrays["conv1.3.weight"] = np.ones((8, 32, 3, 3), np.float32)
    path = str(tmp_path / "a.ckpt")
    write_weights(path, arrays)
    cell = network()
    before = values(cell)
    message = error_of(load_pretrained, cell, path)
    assert path in message
    assert "12 missing" in message
    assert message.count("layer4.") == 10
    assert "1 surplus (strange.weight)" in message
    assert "1 of another shape (conv1.3.weight 8x32x3x3 for 32x32x3x3)" in message
    assert same(values(cell), before)


def test_errors_use_the_names_of_the_file(tmp_path):
    path = str(tmp_path / "a.safetensors")
    arrays = {torch_name(name): array for name, array in golden_weights().items()}
    del arrays["layer1.0.bn1.running_mean"], arrays["layer1.0.bn2.weight"]
    write_weights(path, arrays)
    assert "2 missing (layer1.0.bn1.running_mean, layer1.0.bn2.weight)" in error_of(load_pretrained, network(), path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.filterwarnings("error")  # a warning of NumPy's would be a second line
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    arrays = golden_weights()
    arrays["layer2.0.bn1.gamma"] = arrays["layer2.0.bn1.gamma"].astype(np.float64)
    arrays["layer2.0.bn1.gamma"][3] = bad
    write_weights(str(tmp_path / "a.ckpt"), arrays)
    assert "layer2.0.bn1.gamma" in error_of(load_pretrained, network(), str(tmp_path / "a.ckpt"))


def test_another_number_of_classes_drops_only_the_last_layer_and_only_when_told(tmp_path):
    path = str(tmp_path / "a.ckpt")
    write_weights(path, golden_weights(num_classes=5))
    cell = network()
    before = values(cell)
    message = error_of(load_pretrained, cell, path)
    assert "linear.weight 5x1024 for 7x1024" in message
    assert "5 classes" in message
    assert same(values(cell), before)
    assert load_pretrained(cell, path, drop_head=True) == ["linear.weight", "linear.bias"]
    expected = golden_weights()
    expected.update({name: before[name] for name in ("linear.weight", "linear.bias")})
    assert same(values(cell), expected)


def test_drop_head_keeps_a_last_layer_that_fits_and_forgives_nothing_else(tmp_path):
    path = str(tmp_path / "a.ckpt")
    write_weights(path, golden_weights())
    cell = network()
    assert load_pretrained(cell, path, drop_head=True) == []
    assert same(values(cell), golden_weights())
    write_weights(path, golden_weights(arch="DDRNet23", num_classes=5))
    assert "of another shape" in error_of(load_pretrained, cell, path, drop_head=True)
    assert same(values(cell), golden_weights())


@pytest.mark.parametrize(
    ("found", "wanted", "suffix"),
    [("paper", "zoo", ".ckpt"), ("paper", "zoo", ".safetensors"), ("zoo", "paper", ".ckpt")],
)
def test_the_other_flavour_s_weights_are_refused_with_the_reason(tmp_path, found, wanted, suffix):
    write_weights(str(tmp_path / "a.ckpt"), golden_weights(found))
    path = str(tmp_path / f"b{suffix}")
    convert(str(tmp_path / "a.ckpt"), path)
    cell = network(wanted)
    before = values(cell)
    message = error_of(load_pretrained, cell, path, wanted)
    for word in ("padded", "accuracy", f"--flavour {found}", "src.weights.convert"):
        assert word in message
    assert same(values(cell), before)
    cell = network(found)
    load_pretrained(cell, path, found)
    assert same(values(cell), golden_weights(found))


# Conversion


@pytest.mark.parametrize("arch", ["DDRNet23Slim", "DDRNet23", "DDRNet39"])
def test_converted_pytorch_weights_give_pytorch_s_logits(tmp_path, arch):
    torch = pytest.importorskip("torch")
    from tests.torch_yardstick import golden_network

    reference = golden_network(arch, num_classes=11)
    torch.save({"state_dict": reference.state_dict()}, tmp_path / "a.pth")
    convert(str(tmp_path / "a.pth"), str(tmp_path / "b.ckpt"))
    images = golden.images(shape=(2, 3, 64, 96))
    with torch.no_grad():
        expected = reference(torch.from_numpy(images)).numpy()
    cell = create_model(arch, 11, flavour="paper").set_train(False)
    load_pretrained(cell, str(tmp_path / "b.ckpt"), "paper")
    assert np.abs(cell(Tensor(images)).asnumpy() - expected).max() < 1e-4


@pytest.mark.parametrize("middle", [".ckpt", ".safetensors"])
def test_there_and_back_is_the_identity_bit_for_bit_and_loads_strictly(tmp_path, middle):
    torch = pytest.importorskip("torch")
    from tests.torch_yardstick import FACTORIES

    torch.manual_seed(3)
    trained = FACTORIES[ARCH](num_classes=CLASSES).train()
    for _ in range(2):
        trained(torch.randn(2, 3, 64, 64))
    state = trained.state_dict()
    torch.save(state, tmp_path / "a.pth")
    convert(str(tmp_path / "a.pth"), str(tmp_path / f"b{middle}"))
    convert(str(tmp_path / f"b{middle}"), str(tmp_path / "c.pth"))
    back = torch.load(tmp_path / "c.pth", weights_only=True)
    assert same({k: v.numpy() for k, v in back.items()}, {k: v.numpy() for k, v in state.items()})
    FACTORIES[ARCH](num_classes=CLASSES).load_state_dict(back, strict=True)


@pytest.mark.parametrize("flavour", ["zoo", "paper"])
@pytest.mark.parametrize("middle", [".pth", ".safetensors"])
def test_mindspore_to_pytorch_and_back_is_the_identity_bit_for_bit(tmp_path, flavour, middle):
    skip_without_torch(middle)
    arrays = golden_weights(flavour)
    write_weights(str(tmp_path / "a.ckpt"), arrays)
    convert(str(tmp_path / "a.ckpt"), str(tmp_path / f"b{middle}"))
    convert(str(tmp_path / f"b{middle}"), str(tmp_path / "c.ckpt"), flavour)
    assert same(read_weights(str(tmp_path / "c.ckpt")), arrays)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_zoo_s_weights_for_pytorch_have_zero_biases_and_still_load_as_the_zoo_s(tmp_path, caplog, suffix):
    torch = pytest.importorskip("torch")
    from tests.torch_yardstick import FACTORIES

    path = str(tmp_path / f"b{suffix}")
    write_weights(str(tmp_path / "a.ckpt"), golden_weights("zoo"))
    with caplog.at_level("INFO"):
        convert(str(tmp_path / "a.ckpt"), path)
    for words in (
        "conv1.0.bias and conv1.3.bias",
        "set to zero",
        "padded at the right and bottom only",
        "lower accuracy",
    ):
        assert words in caplog.text
    state = {name: torch.from_numpy(array.copy()) for name, array in read_weights(path).items()}
    FACTORIES[ARCH](num_classes=CLASSES).load_state_dict(state, strict=True)
    cell = network("zoo")
    load_pretrained(cell, path, "zoo")
    assert same(values(cell), golden_weights("zoo"))


def test_safetensors_of_ours_load_strictly_in_pytorch(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    from tests.torch_yardstick import FACTORIES

    write_weights(str(tmp_path / "a.ckpt"), golden_weights("paper"))
    convert(str(tmp_path / "a.ckpt"), str(tmp_path / "b.safetensors"))
    FACTORIES[ARCH](num_classes=CLASSES).load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)


def test_folding_the_stem_s_biases_changes_the_stem_s_output_by_rounding_only(tmp_path, caplog):
    write_weights(str(tmp_path / "a.ckpt"), golden_weights("paper"))
    with caplog.at_level("INFO"):
        convert(str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt"), flavour="zoo")
    for words in ("folded into moving_mean", "one way", "padded on every side", "lower accuracy"):
        assert words in caplog.text
    folded = read_weights(str(tmp_path / "b.ckpt"))
    assert {name: array.shape for name, array in folded.items()} == parameter_shapes(ARCH, "zoo", CLASSES)

    paper = network("paper")
    load_pretrained(paper, str(tmp_path / "a.ckpt"), "paper")
    images = Tensor(golden.images(shape=(2, 3, 64, 64)))
    expected = paper.conv1(images).asnumpy()
    for name in ("conv1.0.bias", "conv1.3.bias"):
        paper.parameters_dict()[name].set_data(Tensor(np.zeros(32, np.float32)))
    assert np.abs(paper.conv1(images).asnumpy() - expected).max() > 0.1
    for name in ("conv1.1.moving_mean", "conv1.4.moving_mean"):
        paper.parameters_dict()[name].set_data(Tensor(folded[name]))
    np.testing.assert_allclose(paper.conv1(images).asnumpy(), expected, atol=1e-5)
    unchanged = {
        k: v for k, v in golden_weights("zoo").items() if k not in ("conv1.1.moving_mean", "conv1.4.moving_mean")
    }
    assert same({name: folded[name] for name in unchanged}, unchanged)


@pytest.mark.parametrize(
    ("arch", "file", "flavour", "suffix"),
    [
        ("DDRNet23Slim", "ddrnet23_slim_segmentation_parameters.txt", "paper", ".pth"),
        ("DDRNet23Slim", "ddrnet23_slim_segmentation_parameters.txt", "zoo", ".safetensors"),
        ("DDRNet23", "ddrnet23_segmentation_parameters.txt", "zoo", ".pth"),
        ("DDRNet39", "ddrnet39_segmentation_parameters.txt", "paper", ".safetensors"),
    ],
)
def test_a_backbone_fits_the_authors_segmentation_network(tmp_path, caplog, arch, file, flavour, suffix):
    skip_without_torch(suffix)
    write_weights(str(tmp_path / "a.ckpt"), golden_weights(flavour, arch, 5))
    with caplog.at_level("INFO"):
        convert(str(tmp_path / "a.ckpt"), str(tmp_path / f"b{suffix}"), backbone=True)
    backbone = read_weights(str(tmp_path / f"b{suffix}"))
    theirs = golden.parameters(file)
    assert {name: array.shape for name, array in backbone.items()}.items() <= theirs.items()
    missing = [name for name in theirs if name not in backbone]
    assert {name.split(".")[0] for name in missing} == {"spp", "final_layer", "seghead_extra"}
    for cell in ("down5.0.weight", "last_layer.0.weight", "linear.bias"):
        assert cell in caplog.text
    assert ("zero" in caplog.text) == (flavour == "zoo")
    assert ("padded" in caplog.text) == (flavour == "zoo")
    bias = backbone["conv1.3.bias"]
    assert bias.any() == (flavour == "paper")
    name = "layer4.1.bn2.running_var"
    assert backbone[name].tobytes() == golden.value("layer4.1.bn2.moving_variance", theirs[name]).tobytes()


def test_a_backbone_of_the_zoo_s_flavour_is_a_contradiction(tmp_path):
    message = error_of(convert, str(tmp_path / "a.ckpt"), str(tmp_path / "b.pth"), flavour="zoo", backbone=True)
    assert "--flavour zoo" in message


def test_another_network_s_weights_are_listed_and_nothing_is_written(tmp_path):
    arrays = golden_weights("paper")
    kept = {name: array for name, array in arrays.items() if not name.startswith("layer5")}
    write_weights(str(tmp_path / "a.ckpt"), {**kept, "spp.scale0.0.gamma": np.ones(4, np.float32)})
    (tmp_path / "b.ckpt").write_text("as it was")
    message = error_of(convert, str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt"))
    count = len(arrays) - len(kept)
    assert f"{count} missing" in message
    assert message.count("layer5") == 10
    assert "1 surplus (spp.scale0.0.gamma)" in message
    assert (tmp_path / "b.ckpt").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


def test_the_command_line_converts_and_reports_bad_input_in_one_line(tmp_path):
    write_weights(str(tmp_path / "a.ckpt"), golden_weights())
    command = [sys.executable, "-m", "src.weights.convert"]
    good = subprocess.run(
        [*command, "--from", tmp_path / "a.ckpt", "--to", tmp_path / "b.safetensors", "--backbone"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert good.returncode == 0, good.stderr
    assert "DDRNet23Slim" in good.stdout
    assert (tmp_path / "b.safetensors").exists()
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    bad = subprocess.run(
        [*command, "--from", tmp_path / "bad.ckpt", "--to", tmp_path / "c.safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 2
    assert bad.stderr == f"error: {tmp_path / 'bad.ckpt'}: truncated, damaged, or not a MindSpore checkpoint\n"
    assert not (tmp_path / "c.safetensors").exists()
