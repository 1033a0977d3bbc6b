"""The CPU's own kernels against NumPy in float64 and against MindSpore's operators."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.args import Config
from src.kernels import build, operators
from src.tools.cell import native_kernels
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(build.library() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _same_noise_whatever_ran_before():
    noise.rng = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return noise.rng.standard_normal(shape).astype(np.float32)


def relued(*shape: int) -> np.ndarray:
    """Noise of which a third is zero, as behind a ReLU."""
    values = noise(*shape)
    return np.where(values < -0.43, np.float32(0), values)


def padding(size: int, kernel: int, stride: int, same: bool) -> tuple[int, int]:
    if not same:
        return kernel // 2, kernel // 2
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def patches(x: np.ndarray, kernel: int, stride: int, same: bool) -> np.ndarray:
    """What each output pixel reads: (N, H, W, C) to (N, H', W', C, k, k), in float64."""
    pads = [(0, 0), *(padding(size, kernel, stride, same) for size in x.shape[1:3]), (0, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x.astype(np.float64), pads), (kernel, kernel), (1, 2))
    return windows[:, ::stride, ::stride]


SHAPES = [  # (N, H, W, C), output channels, kernel, stride, same
    ((2, 13, 11, 3), 64, 3, 2, True),
    ((2, 13, 11, 3), 64, 3, 2, False),
    ((3, 12, 10, 5), 40, 3, 2, True),
    ((2, 8, 8, 32), 32, 3, 1, False),
    ((2, 9, 7, 64), 128, 1, 2, True),
    ((2, 9, 7, 64), 128, 1, 2, False),
    ((1, 1, 1, 64), 64, 3, 2, True),
    ((3, 7, 7, 65), 70, 3, 1, False),
    ((2, 5, 5, 16), 17, 1, 1, False),
    ((8, 20, 20, 16), 24, 3, 1, False),
    ((1, 14, 14, 128), 256, 3, 2, True),
    ((1, 2, 3, 8), 1, 3, 2, False),
    ((2, 9, 12, 34), 20, 5, 1, False),
    ((1, 11, 8, 3), 18, 7, 2, True),
    ((3, 9, 7, 96), 48, 3, 1, False),
    ((5, 15, 15, 32), 512, 3, 1, False),  # more pixels than the weights' gradient takes at once
    ((2, 15, 14, 64), 80, 3, 2, False),
    ((2, 13, 11, 64), 64, 3, 2, False),  # whose gradient reads beyond as many pixels as it has in a row
    ((6, 11, 9, 48), 80, 3, 1, False),  # in float32 these three by Winograd's algorithm, in tiles of 2x2 pixels
    ((9, 14, 15, 64), 96, 3, 1, False),
    ((2, 16, 17, 144), 16, 3, 1, False),
]


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def use_tiles(use: bool) -> bool:
    """Let products of bfloat16 use the processor's tiles or not; whether they do."""
    return bool(ctypes.CDLL(str(build.library())).ddrnet_use_tiles(use))


@pytest.fixture
def bfloat16(request):
    """Whether the operators multiply in bfloat16: not, by vectors, or on tiles."""
    if request.param == "":
        yield False
        return
    if not ctypes.CDLL(str(build.library())).ddrnet_has_bfloat16():
        pytest.skip("the processor has no bfloat16")
    if use_tiles(request.param == "tiles") != (request.param == "tiles"):
        pytest.skip("the processor has no tiles")
    yield True
    use_tiles(True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is Intel's")
def test_bfloat16_is_chosen_without_tiles_on_other_processors_than_intel_s_alone():
    facts = Path("/proc/cpuinfo").read_text()
    library = ctypes.CDLL(str(build.library()))
    try:
        assert use_tiles(False) is False
        assert bool(library.ddrnet_has_bfloat16()) == ("avx512_bf16" in facts and "GenuineIntel" not in facts)
    finally:
        tiles = use_tiles(True)
    assert not tiles or "amx_bf16" in facts
    assert build.has_bfloat16() == (tiles or ("avx512_bf16" in facts and "GenuineIntel" not in facts))


in_each_precision = pytest.mark.parametrize("bfloat16", ["", "vectors", "tiles"], indirect=True)


@in_each_precision
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "same"), SHAPES)
def test_a_convolution_and_its_gradients_equal_the_sums_that_define_them(shape, out, kernel, stride, same, bfloat16):
    """In bfloat16 they are the exact sums of rounded factors; an odd number of channels is multiplied in float32."""

    def rounded(values: np.ndarray, channels: int = 2) -> np.ndarray:
        return to_bfloat16(values) if bfloat16 and channels % 2 == 0 else values

    def relative(got: Tensor, want: np.ndarray) -> float:
        return np.abs(got.asnumpy() - want).max() / np.abs(want).max()

    x, weight, bias = relued(*shape), noise(out, shape[3], kernel, kernel), noise(out)
    read, factor = patches(rounded(x, shape[3]), kernel, stride, same), rounded(weight, shape[3]).astype(np.float64)
    want = np.einsum("nhwcij,ocij->nhwo", read, factor, optimize=True)
    dy = relued(*want.shape)
    read = patches(rounded(x), kernel, stride, same)
    dweight = np.einsum("nhwcij,nhwo->ocij", read, rounded(dy).astype(np.float64), optimize=True)
    # what each output pixel hands back to the input pixels that it has read
    factor = rounded(weight, out).astype(np.float64)
    spread = np.einsum("nhwo,ocij->nhwcij", rounded(dy, out).astype(np.float64), factor, optimize=True)
    pads = [padding(size, kernel, stride, same) for size in shape[1:3]]
    padded = np.zeros((shape[0], *(size + sum(pad) for size, pad in zip(shape[1:3], pads)), shape[3]))
    for i in range(kernel):
        for j in range(kernel):
            rows, columns = i + stride * want.shape[1], j + stride * want.shape[2]
            part = padded[:, i:rows:stride, j:columns:stride]
            part += spread[:, : part.shape[1], : part.shape[2], :, i, j]
    dx = padded[:, pads[0][0] : pads[0][0] + shape[1], pads[1][0] : pads[1][0] + shape[2]]

    plain, biased = (operators.convolution(stride, same, bias, bfloat16) for bias in (False, True))
    inputs = (Tensor(x), Tensor(weight))
    assert relative(plain(*inputs), want) < 2e-6
    assert relative(biased(*inputs, Tensor(bias)), want + bias) < 2e-6
    exact = (dx, dweight, dy.astype(np.float64).sum((0, 1, 2)))
    got = ops.grad(lambda x, w, b: (biased(x, w, b) * Tensor(dy)).sum(), (0, 1, 2))(*inputs, Tensor(bias))
    assert max(map(relative, got, exact)) < 3e-6
    got = ops.grad(lambda x, w: (plain(x, w) * Tensor(dy)).sum(), (0, 1))(*inputs)
    assert max(map(relative, got, exact)) < 3e-6


@in_each_precision
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "same"), [*SHAPES[::3], SHAPES[-1]])
def test_a_convolution_finishes_with_bias_shortcut_and_relu(shape, out, kernel, stride, same, adds, relu, bfloat16):
    x, weight, bias = noise(*shape), noise(out, shape[3], kernel, kernel), Tensor(noise(out))
    if (
        bfloat16 and shape[3] % 2 and shape[3] <= 7 and kernel == 3
    ):  # images are rounded as well when weights are packed
        x, weight = to_bfloat16(x), to_bfloat16(weight)
    x, weight = Tensor(x), Tensor(weight)
    want = operators.convolution(stride, same, True, bfloat16)(x, weight, bias).asnumpy()
    shortcut = noise(*want.shape)
    if adds:
        want = want + shortcut
    if relu:
        want = np.maximum(want, 0)
    packed = operators.pack_weight(stride, bfloat16)(weight)
    finished = operators.packed_convolution(stride, same, relu)
    got = finished(x, packed, bias, *[Tensor(shortcut)] * adds).asnumpy()
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("bfloat16", ["vectors", "tiles"], indirect=True)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "same"), SHAPES[1::2])
def test_tensors_of_bfloat16_are_convolved_to_the_nearest_bfloat16(
    shape, out, kernel, stride, same, adds, wide, bfloat16
):
    x, weight, bias = noise(*shape), noise(out, shape[3], kernel, kernel), noise(out)
    x = x if wide else to_bfloat16(x)  # what comes first in a network is float32
    exact = shape[3] % 2 and (shape[3] > 7 or kernel != 3)  # an odd number of channels, unless they are few
    factors = (x, weight) if exact else (to_bfloat16(x), to_bfloat16(weight))
    want = np.einsum(
        "nhwcij,ocij->nhwo", patches(factors[0], kernel, stride, same), factors[1].astype(np.float64), optimize=True
    )
    want += bias
    shortcut = to_bfloat16(noise(*want.shape))
    want = np.maximum(want + shortcut * adds, 0)
    operator = operators.packed_convolution(stride, same, True, True)
    inputs = [Tensor(x, ms.float32 if wide else ms.bfloat16), operators.pack_weight(stride, True)(Tensor(weight))]
    got = operator(*inputs, Tensor(bias), *[Tensor(shortcut, ms.bfloat16)] * adds)
    assert got.dtype == ms.bfloat16
    got = got.float().asnumpy()
    # half a unit of the eighth bit, and the sums' own rounding
    np.testing.assert_allclose(got, want, rtol=2**-8, atol=3e-6 * np.abs(want).max())
    assert (got != to_bfloat16(want.astype(np.float32))).mean() < 0.01


@pytest.mark.parametrize("bfloat16", ["", "tiles"], indirect=True)
def test_packed_weights_are_read_wherever_their_tensor_lies(bfloat16):
    """They are aligned where they are packed; another tensor may be so elsewhere."""
    x, weight, bias = noise(1, 9, 9, 32), noise(40, 32, 3, 3), noise(40)
    packed = operators.pack_weight(1, bfloat16)(Tensor(weight)).asnumpy()
    want = operators.packed_convolution(1, False, False)(Tensor(x), Tensor(packed), Tensor(bias)).asnumpy()
    function = ctypes.CDLL(str(build.library())).conv2d_packed_1
    for start in (0, 1, 4, 15):
        room = np.empty(packed.size + 32, np.float32)
        first = -room.ctypes.data // 4 % 16 + start
        moved = room[first : first + packed.size].reshape(packed.shape)
        moved[:] = packed
        for _ in range(2):
            y = np.empty_like(want)
            arrays = (x, moved, bias, y)
            data = (ctypes.c_void_p * 4)(*(array.ctypes.data for array in arrays))
            ranks = (ctypes.c_int * 4)(*(array.ndim for array in arrays))
            shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
            pointers = (ctypes.POINTER(ctypes.c_int64) * 4)(
                *(ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in shapes)
            )
            types = (ctypes.c_char_p * 4)(*[b"float32"] * 4)
            assert function(4, data, ranks, pointers, types, None, None) == 0
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_pool_is_the_mean_over_the_pixels(narrow):
    x, dy = noise(3, 5, 4, 300), noise(3, 300)
    if narrow:
        x = to_bfloat16(x)
    tensor = Tensor(x, ms.bfloat16 if narrow else ms.float32)
    np.testing.assert_allclose(operators.pool()(tensor).asnumpy(), x.astype(np.float64).mean((1, 2)), atol=1e-6)
    if not narrow:
        got = ops.grad(lambda x: (operators.pool()(x) * Tensor(dy)).sum())(tensor).asnumpy()
        np.testing.assert_allclose(got, np.broadcast_to(dy[:, None, None] / 20, x.shape), rtol=1e-6)


def test_a_relu_of_bfloat16_keeps_what_is_not_a_number():
    x = Tensor(np.array([-np.inf, -3, -1e-38, -0.0, 0, 1e-38, 2, np.inf, np.nan], np.float32), ms.bfloat16)
    got = operators.relu_of_bfloat16()(x).float().asnumpy()
    np.testing.assert_array_equal(got, np.maximum(x.float().asnumpy(), 0))


@in_each_precision
@pytest.mark.parametrize("channels", [20, 32])
def test_what_an_operator_left_in_scratch_memory_does_not_reach_the_next(channels, bfloat16):
    """The memory is used again: numbers that are none, of one that had more pixels, would spread."""
    operator = operators.convolution(1, False, False, bfloat16)
    gradient = operators.Operator(f"conv2d_weight_gradient_1{'_bfloat16' * bfloat16}", lambda x, dy, weight: weight)
    x, dy, weight = Tensor(noise(1, 5, 5, channels)), Tensor(noise(1, 5, 5, 48)), Tensor(noise(48, channels, 3, 3))
    many = [Tensor(np.full((8, 20, 20, count), np.nan, np.float32)) for count in (channels, 48)]
    want = operator(x, weight).asnumpy(), gradient(x, dy, weight).asnumpy()
    operator(many[0], weight).asnumpy()
    np.testing.assert_array_equal(operator(x, weight).asnumpy(), want[0])
    gradient(*many, weight).asnumpy()
    np.testing.assert_array_equal(gradient(x, dy, weight).asnumpy(), want[1])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_become_channels_last(channels):
    images = noise(3, channels, 67, 65)
    got = operators.channels_last()(Tensor(images)).asnumpy()
    np.testing.assert_array_equal(got, images.transpose(0, 2, 3, 1))
    dy = noise(*got.shape)
    gradient = ops.grad(lambda x: (operators.channels_last()(x) * Tensor(dy)).sum())(Tensor(images)).asnumpy()
    np.testing.assert_array_equal(gradient, dy.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", operators.ADDED)
@pytest.mark.parametrize(
    ("shape", "offset"), [((3, 5, 7, 6), 0.0), ((8, 40, 40, 64), 100.0), ((1, 2, 3, 33), 0.0), ((2, 2, 2, 512), 3.0)]
)
def test_batch_norm_and_its_gradient_equal_the_published_formula(shape, offset, added, relu):
    """With an offset much larger than the deviation, which sums of squares alone would not survive."""
    x, dy, channels = noise(*shape) + np.float32(offset), noise(*shape), shape[3]
    gamma, beta, moving_mean, moving_variance = noise(channels), noise(channels), noise(channels), noise(channels) ** 2
    shortcut, rule = noise(*shape), np.array([1e-5, 0.9], np.float32)
    scale = np.where(np.arange(shape[0]) % 3 == 1, np.float32(0), np.float32(1.25))
    kept = scale.reshape(-1, 1, 1, 1).astype(np.float64)
    on_branch, on_shortcut = kept if added == "drop_branch" else 1, kept if added == "drop_shortcut" else 1
    flat, rows = x.reshape(-1, channels).astype(np.float64), x.size // channels
    mean, variance = flat.mean(0), flat.var(0)
    inverse = 1 / np.sqrt(variance + 1e-5)
    normal = (flat - mean) * inverse
    want = (normal * gamma + beta).reshape(shape) * on_branch + bool(added) * shortcut * on_shortcut
    norm = operators.batch_norm(relu, added)
    moving = [Parameter(Tensor(value.copy()), name="moving") for value in (moving_mean, moving_variance)]
    scaled = added.startswith("drop")
    tensors = [*map(Tensor, (x, gamma, beta)), *moving, Tensor(rule)]
    tensors += [Tensor(shortcut)] * bool(added) + [Tensor(scale)] * scaled
    y, got_mean, got_inverse = (out.asnumpy() for out in norm(*tensors))
    new_mean, new_variance = (parameter.asnumpy() for parameter in moving)
    np.testing.assert_allclose(y, np.maximum(want, 0) if relu else want, atol=3e-5 * (1 + offset / 10))
    np.testing.assert_allclose(got_mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got_inverse, inverse, rtol=1e-4)
    np.testing.assert_allclose(new_mean, 0.9 * moving_mean + 0.1 * mean, rtol=1e-5, atol=1e-6)
    unbiased = variance * rows / (rows - 1)
    np.testing.assert_allclose(new_variance, 0.9 * moving_variance + 0.1 * unbiased, rtol=1e-4)

    def scalar(*inputs):
        return (norm(*inputs)[0] * Tensor(dy)).sum()

    got = ops.grad(scalar, (0, 1, 2, 6)[: 3 + bool(added)])(*tensors)
    behind = np.where(y > 0, dy, 0) if relu else dy
    grads = (behind * on_branch).reshape(rows, channels).astype(np.float64)
    dgamma, dbeta = (grads * normal).sum(0), grads.sum(0)
    dx = gamma * inverse * (grads - dbeta / rows - normal * dgamma / rows)
    for gradient, exact in zip(got, (dx.reshape(shape), dgamma, dbeta, behind * on_shortcut)):
        largest = max(1, np.abs(exact).max()) * (1 + offset / 10)
        np.testing.assert_allclose(gradient.asnumpy(), exact, atol=3e-5 * largest)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", ["drop_branch", "drop_shortcut"])
def test_drop_path_in_batch_norm_has_the_gradient_of_mindspores_operators_and_of_differences(added, relu):
    shape = (5, 4, 6, 10)
    x, shortcut, dy = noise(*shape), noise(*shape), noise(*shape)
    gamma, beta = 1 + noise(10) / 4, noise(10)
    scale = np.array([1.5, 0, 1.5, 1.5, 0], np.float32)
    moving = [Parameter(Tensor(np.ones(10, np.float32)), name="moving") for _ in range(2)]
    rule, norm = Tensor(np.array([1e-5, 0.9], np.float32)), operators.batch_norm(relu, added)
    plain = nn.BatchNorm2d(10, eps=1e-5, momentum=0.9).set_train()

    def ours(x, gamma, beta, shortcut):
        return (norm(x, gamma, beta, *moving, rule, shortcut, Tensor(scale))[0] * Tensor(dy)).sum()

    def theirs(x, gamma, beta, shortcut):
        y = ops.transpose(plain(ops.transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1)) * gamma + beta
        kept = Tensor(scale.reshape(-1, 1, 1, 1))
        y = y * kept + shortcut if added == "drop_branch" else y + shortcut * kept
        return ((ops.relu(y) if relu else y) * Tensor(dy)).sum()

    inputs = tuple(map(Tensor, (x, gamma, beta, shortcut)))
    got, want = (ops.grad(function, (0, 1, 2, 3))(*inputs) for function in (ours, theirs))
    for one, other in zip(got, want):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-4, atol=2e-5)
    if relu:
        return  # a difference may step over its kink
    for i, gradient in enumerate(got):
        step = noise(*gradient.shape) / 64
        up, down = (
            float(ours(*(Tensor(value.asnumpy() + sign * step) if j == i else value for j, value in enumerate(inputs))))
            for sign in (np.float32(1), np.float32(-1))
        )
        slope = (gradient.asnumpy().astype(np.float64) * step).sum()
        assert (up - down) / 2 == pytest.approx(slope, rel=0.01, abs=0.01)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_moving_averages_survive_numbers_that_are_not_finite(bad):
    x = noise(2, 3, 3, 4)
    x[1, 0, 2, 1] = bad
    one, rule = Tensor(np.ones(4, np.float32)), Tensor(np.array([1e-5, 0.9], np.float32))
    moving = [Parameter(Tensor(np.ones(4, np.float32)), name="moving") for _ in range(2)]
    y = operators.batch_norm()(Tensor(x), one, one, *moving, rule)[0].asnumpy()
    assert not np.isfinite(y[..., 1]).any()
    assert np.isfinite(np.delete(y, 1, -1)).all()
    for parameter in moving:
        assert np.isfinite(parameter.asnumpy()).all()
        assert (parameter.asnumpy() == 1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_shapes_and_types_that_do_not_fit_are_refused(mode):
    ms.set_context(mode=mode)
    x, weight, bias = (Tensor(noise(*shape)) for shape in ((1, 4, 4, 6), (5, 6, 3, 3), (5,)))
    with pytest.raises(ValueError, match="conv2d: weight's inputs: must be 6, not 4"):
        operators.convolution(1, False, False)(x, Tensor(noise(5, 4, 3, 3)))
    with pytest.raises(ValueError, match=r"conv2d_bias: bias: must be \[5\], not \[4\]"):
        operators.convolution(1, False, True)(x, weight, Tensor(noise(4)))
    packed = operators.pack_weight(2)(weight)
    with pytest.raises(ValueError, match=r"conv2d_packed_relu: shortcut: must be \[1, 2, 2, 5\], not \[1, 1, 1, 5\]"):
        operators.packed_convolution(2, False, True)(x, packed, bias, Tensor(noise(1, 1, 1, 5)))
    with pytest.raises(ValueError, match=r"conv2d_packed: weight: must be \d+, not 5"):
        operators.packed_convolution(2, False, False)(x, weight, bias)
    with pytest.raises(TypeError, match=r"works on float32, not on.*Float16"):
        operators.convolution(1, False, False)(Tensor(x, ms.float16), weight)
    moving = [Parameter(Tensor(noise(6)), name="moving") for _ in range(2)]
    for added in ("drop_branch", "drop_shortcut"):
        one, rule = Tensor(noise(6)), Tensor(noise(2))
        with pytest.raises(ValueError, match=r"batch_norm: scale: must be \[1\], not \[2\]"):
            operators.batch_norm(True, added)(x, one, one, *moving, rule, x, Tensor(noise(2)))
    with pytest.raises(ValueError, match=r"batch_norm: beta: must be \[6\], not \[5\]"):
        operators.batch_norm()(x, Tensor(noise(6)), bias, *moving, Tensor(noise(2)))


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_batch_norm_over_one_value_is_refused_as_by_pytorch(mode):
    ms.set_context(mode=mode)
    one = Tensor(noise(6))
    moving = [Parameter(Tensor(noise(6)), name="moving") for _ in range(2)]
    with pytest.raises(ValueError, match=r"more than one value a channel when training, got input size \[1, 1, 1, 6\]"):
        operators.batch_norm()(Tensor(noise(1, 1, 1, 6)), one, one, *moving, Tensor(noise(2)))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("small", "large"), [((7, 7), (28, 28)), ((3, 5), (7, 9)), ((1, 2), (4, 2))])
def test_upsampling_is_mindspores_and_its_gradient_the_adjoint(half, small, large):
    x, like, dy = noise(2, *small, 6), noise(2, *large, 3), noise(2, *large, 6)
    up = operators.upsample(half)
    resize = ops.ResizeBilinearV2(align_corners=False, half_pixel_centers=half)
    want = resize(Tensor(x.transpose(0, 3, 1, 2).copy()), large).asnumpy().transpose(0, 2, 3, 1)
    got = up(Tensor(x), Tensor(like)).asnumpy()
    np.testing.assert_allclose(got, want, atol=2e-6)
    dx = ops.grad(lambda x: (up(x, Tensor(like)) * Tensor(dy)).sum())(Tensor(x)).asnumpy()
    assert (got.astype(np.float64) * dy).sum() == pytest.approx((x.astype(np.float64) * dx).sum(), rel=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_merging_is_a_sum_with_what_is_upsampled_behind_a_relu(half):
    x, like, dy = noise(2, 3, 5, 20), noise(2, 7, 9, 20), noise(2, 7, 9, 20)
    up, merge = operators.upsample(half), operators.merge(half)

    def apart(x, like):
        return (ops.relu(like + up(x, like)) * Tensor(dy)).sum()

    def together(x, like):
        return (merge(x, like) * Tensor(dy)).sum()

    want = ops.relu(Tensor(like) + up(Tensor(x), Tensor(like))).asnumpy()
    np.testing.assert_allclose(merge(Tensor(x), Tensor(like)).asnumpy(), want, atol=1e-6)
    for got, exact in zip(*(ops.grad(each, (0, 1))(Tensor(x), Tensor(like)) for each in (together, apart))):
        np.testing.assert_allclose(got.asnumpy(), exact.asnumpy(), atol=1e-6)
    narrow = operators.merge(half, True)(Tensor(x, ms.bfloat16), Tensor(like, ms.bfloat16)).float().asnumpy()
    rounded = [Tensor(to_bfloat16(values)) for values in (x, like)]
    np.testing.assert_allclose(narrow, merge(*rounded).asnumpy(), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
def test_the_sum_of_squares_of_all_tensors_is_not_finite_where_one_number_is_not(bad):
    tensors = [noise(3), noise(100_000), noise(7, 11, 2), noise(1)]
    exact = sum((tensor.astype(np.float64) ** 2).sum() for tensor in tensors)
    if bad is not None:
        tensors[1][70_001] = bad
    got = float(operators.sum_of_squares()(*map(Tensor, tensors)).asnumpy()[0])
    assert got == pytest.approx(exact, rel=1e-6) if bad is None else not np.isfinite(got)


def test_averages_move_in_place_and_in_order():
    class Moving(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.average = Parameter(Tensor(np.full(5, 2.0, np.float32)), name="average")
            self.value = Parameter(Tensor(np.full(5, 1.0, np.float32)), name="value")
            self.update = operators.average_update(1)

        def construct(self, decay: Tensor) -> tuple:
            before = self.average.sum()
            self.update(decay, self.average, self.value)
            return before, self.average.sum()

    cell = Moving()
    before, after = cell(Tensor(0.75, ms.float32))
    assert (float(before.asnumpy()), float(after.asnumpy())) == (10.0, 8.75)
    assert (cell.average.asnumpy() == 1.75).all()


PROGRAM = """
import sys, hashlib, numpy as np, src
from mindspore import Parameter, Tensor, ops
from src.kernels import operators
rng = np.random.default_rng(0)
x, w = (Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((4, 28, 28, 64), (96, 64, 3, 3)))
conv, norm = operators.convolution(1, False, False), operators.batch_norm()
one = Tensor(np.ones(96, np.float32))
moving = [Parameter(Tensor(np.ones(96, np.float32)), name=name) for name in ("mean", "variance")]
rule = Tensor(np.array([1e-5, 0.9], np.float32))
def loss(x, w, gamma):
    y = norm(conv(x, w), gamma, one, *moving, rule)[0]
    return (y * y * y).sum()
parts = [*ops.grad(loss, (0, 1, 2))(x, w, one), *moving, operators.sum_of_squares()(x, w)]
print(hashlib.sha256(b"".join(part.asnumpy().tobytes() for part in parts)).hexdigest())
"""


def run_python(code: str, *prefix: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*prefix, sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.skipif(not shutil.which("taskset") or os.cpu_count() < 2, reason="needs taskset and two cores")
def test_results_do_not_depend_on_the_number_of_threads():
    runs = [
        run_python(PROGRAM),
        run_python(PROGRAM, OMP_NUM_THREADS="1"),
        run_python(PROGRAM, "taskset", "-c", "0"),
    ]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


FAILING = """
#include "kernels.h"
namespace ddrnet {
void Fails(const Tensors& t) {  // in the job that the input names
  Parallel(1000, [&](int64_t i) {
    if (i == static_cast<int64_t>(t.In(0)[0])) throw std::runtime_error("the milk is sour");
  });
  t.Out(1)[0] = 7;
}
void Hungry(const Tensors& t) {
  Parallel(1000, [&](int64_t i) {
    if (i == static_cast<int64_t>(t.In(0)[0])) ThreadScratch(int64_t{1} << 60)[0] = 1;
  });
}
void Crooked(const Tensors& t) {
  alignas(64) float panel[kBlock + 1] = {}, out[kMostRows * kBlock];
  float* to[kMostRows];
  std::fill_n(to, kMostRows, &out[0]);
  const float* rows[kMostRows];
  std::fill_n(rows, kMostRows, &panel[0]);
  const char* crooked = reinterpret_cast<const char*>(panel) + (t.In(0)[0] > 0);
  Tile(Factors::kFloat32, kMostVectors, rows, 1, 1, reinterpret_cast<const float*>(crooked), to, {});
}
}  // namespace ddrnet
DDRNET_OPERATOR(fails, ddrnet::Fails)
DDRNET_OPERATOR(hungry, ddrnet::Hungry)
DDRNET_OPERATOR(crooked, ddrnet::Crooked)
"""
CALLS = """
import sys, mindspore as ms, numpy as np
from pathlib import Path
from src.kernels import build
build.FOLDER, build.FLAGS = Path(sys.argv[1]), tuple(flag.replace("-O3", "-O1") for flag in build.FLAGS)
from src.kernels.operators import Operator, sum_of_squares
ms.set_context(mode=int(sys.argv[2]))
for name in ("fails", "hungry", "crooked"):
    operator = Operator(name, lambda x: x)
    for _ in range(20):
        for job in (999.0, 0.0, 500.0):
            try:
                operator(ms.Tensor([job], ms.float32)).asnumpy()
            except RuntimeError as error:
                assert f"({name})" in str(error), error
                print(name, int(job))
    x = ms.Tensor(np.ones(1_000_000, np.float32))
    assert float(sum_of_squares()(x).asnumpy()[0]) == 1e6
"""


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_what_an_operator_throws_in_any_thread_is_an_exception_in_python_and_the_next_one_runs(mode, tmp_path):
    folder = copy_of_sources(tmp_path / "kernels")
    (folder / "failing.cc").write_text(FAILING)
    done = subprocess.run(
        [sys.executable, "-c", CALLS, folder, str(mode)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = done.stdout.split("\n")
    assert {line: ended.count(line) for line in ended if line} == {
        **{f"{name} {job}": 20 for name in ("fails", "hungry") for job in (0, 500, 999)},
        **{f"crooked {job}": 20 for job in (500, 999)},
    }
    assert done.stderr.count("CPU kernel fails: the milk is sour\n") == 60
    assert done.stderr.count("CPU kernel hungry: not enough memory\n") == 60
    assert done.stderr.count("CPU kernel crooked: Tile: the panel is not aligned\n") == 40


def test_without_a_compiler_mindspores_kernels_serve_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    config = Config(device_target="CPU", amp_level="O0")
    assert native_kernels(config).network == "float32"
    assert native_kernels(Config(device_target="CPU", amp_level="O2")).network == ""
    assert not native_kernels(config.model_copy(update={"cpu_kernels": "mindspore"})).update
    assert not native_kernels(Config(amp_level="O0")).update
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "FOLDER", copy_of_sources(tmp_path / "kernels"))
    build.library.cache_clear()
    try:
        assert not native_kernels(config).update
        assert "no C++ compiler (g++, c++, clang++) found" in caplog.text
    finally:
        build.library.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
@pytest.mark.parametrize(("compiler", "processor"), [("g++", "haswell"), ("g++", "x86-64"), ("clang++", "native")])
def test_kernels_for_older_processors_and_another_compiler_compute_the_same(compiler, processor, tmp_path):
    """With AVX2, with SSE2 alone, and by Clang: the same tests as above."""
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    folder = copy_of_sources(tmp_path / "kernels")
    done = run_python(
        "import sys; from pathlib import Path; import pytest; from src.kernels import build; "
        f"build.FOLDER, build.COMPILERS = Path({str(folder)!r}), ({compiler!r},); "
        f"build.FLAGS = tuple(flag.replace('=native', '={processor}') for flag in build.FLAGS); "
        "sys.exit(pytest.main(['-q', '-p', 'no:xdist', '-p', 'no:cacheprovider', 'tests/test_kernels.py', "
        "'-k', 'test_a_convolution or test_batch_norm or test_upsampling or test_the_sum']))"
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert len(list((folder / "build").iterdir())) == 1


def copy_of_sources(folder):
    shutil.copytree(build.FOLDER, folder, ignore=shutil.ignore_patterns("build", "__pycache__"))
    return folder


THREADS = """
import ctypes, src, mindspore as ms, numpy as np
from src.kernels import build, operators
ms.set_context(mode=ms.GRAPH_MODE)
operators.sum_of_squares()(ms.Tensor(np.ones(100000, np.float32))).asnumpy()
print(ctypes.CDLL(str(build.library())).ddrnet_threads())
"""


@pytest.mark.parametrize(
    ("wanted", "least"),
    [("", 0), ("1", 1), (" +2,1", 2), ("1000", 0), ("0", 0), ("-1", 0), ("\u00b2", 0), ("9" * 30, 0)],
)
def test_all_cores_work_unless_the_environment_says_fewer(wanted, least):
    """Within MindSpore, which sets OMP_NUM_THREADS to 1 when it is imported."""
    cores = len(os.sched_getaffinity(0))
    assert int(run_python(THREADS, OMP_NUM_THREADS=wanted).stdout) == min(cores, least or cores)
