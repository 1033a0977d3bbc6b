"""The compiled kernels as operators of MindSpore, with their gradients. Tensors are float32 unless said, images NHWC.

Each is a `Custom` of type "aot", as
https://www.mindspore.cn/tutorials/en/r2.7.0/custom_program/op_custom.html describes.
"""

import functools
from collections.abc import Sequence
from typing import Callable, Optional, Union

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import signature

from src.kernels.build import block, library

zeros_like = ops.ZerosLike()


class Operator(ops.Custom):
    """A function of the compiled kernels.

    Args:
        name: of the function.
        shape: from the inputs' shapes to the output's, or to a tuple of them.
        outputs: how many; 0: as many as inputs.
        bprop: from inputs, output and its gradient to the inputs' gradients.
        types: that each input may have; those that are not named are float32.
        output: the type of what comes out.
    """

    def __init__(
        self,
        name: str,
        shape: Callable,
        outputs: int = 1,
        bprop: Optional[Callable] = None,
        types: Sequence[tuple[ms.Type, ...]] = (),
        output: ms.Type = ms.float32,
    ) -> None:
        def dtype(*kinds: ms.Type) -> Union[ms.Type, tuple]:
            for i, kind in enumerate(kinds):
                wanted = types[i] if i < len(types) else (ms.float32,)
                if kind.element_type() not in wanted:
                    raise TypeError(
                        f"{name}: works on {' or '.join(map(str, wanted)).lower()}, not on {kind}, as input {i}"
                    )
            count = outputs or len(kinds)
            return output if count == 1 else (output,) * count

        super().__init__(f"{library()}:{name}", shape, dtype, func_type="aot", bprop=bprop)

    def __deepcopy__(self, memo: dict) -> "Operator":
        return self  # holds nothing of its own

    def writing(self, inputs: int, written: range) -> "Operator":
        """Say which of so many inputs the function writes to: they must be Parameters."""
        self.add_prim_attr("side_effect_mem", True)
        kinds = [signature.sig_rw.RW_WRITE if i in written else signature.sig_rw.RW_READ for i in range(inputs)]
        self.set_signatures([signature.make_sig(f"input{i}", kind) for i, kind in enumerate(kinds)])
        return self


@functools.cache
def convolution(stride: int, same: bool, bias: bool, bfloat16: bool = False) -> Operator:
    """x (N, H, W, C), weight (O, C, k, k)[, bias (O)] to (N, ceil(H / stride), ceil(W / stride), O).

    Args:
        stride: 1 or 2.
        same: pad as little as is needed, at the right and bottom first; otherwise k // 2 on every side.
        bias: whether there is one.
        bfloat16: multiply in bfloat16 and add up in float32, where the processor can (`has_bfloat16`).
    """
    name, suffix = f"conv2d{'_bias' * bias}", _suffix(stride, same, bfloat16)
    input_gradient = Operator(f"conv2d_input_gradient_{suffix}", lambda dy, weight, x: x)
    weight_gradient = Operator(f"conv2d_weight_gradient_{suffix}", lambda x, dy, weight: weight)

    def gradients(x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple:
        return input_gradient(dout, weight, x), weight_gradient(x, dout, weight)

    def gradients_with_bias(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple:
        return input_gradient(dout, weight, x), weight_gradient(x, dout, weight), dout.sum((0, 1, 2))

    bprop = gradients_with_bias if bias else gradients
    return Operator(f"{name}_{suffix}", _convolved(name, stride), bprop=bprop)


@functools.cache
def pack_weight(stride: int, bfloat16: bool = False) -> Operator:
    """Weight (O, C, k, k) in the order in which `packed_convolution` reads it: (`_filled` O, C, k, k).

    Args:
        stride: with which it convolves.
        bfloat16: rounded to it, two numbers in the place of one, (.., C / 2, k, k). Where C is odd, float32 as it is,
            or, of 3x3 and up to 7 channels, such as those of images, taps and channels as one, (.., pairs, 1, 1).
            Of float32, 3x3 and stride 1, transformed for Winograd's algorithm, (.., C, 4, 4), unless C is so large that
            reading them takes longer than they spare.
    """

    def shape(weight: list) -> list:
        inputs, kernel = weight[1:3]
        if bfloat16 and inputs % 2 == 0:
            inputs //= 2
        elif bfloat16 and kernel == 3 and inputs <= 7:
            inputs, kernel = -(-inputs * 9 // 32) * 16, 1
        elif stride == 1 and kernel == 3 and inputs % 16 == 0 and inputs <= 256:
            kernel = 4
        return [_filled(weight[0], inputs * kernel**2), inputs, kernel, kernel]

    # a name each, as MindSpore keeps shapes by name
    return Operator(f"conv2d_pack_{_suffix(stride, False, bfloat16)}", shape)


@functools.cache
def packed_convolution(stride: int, same: bool, relu: bool, narrow: bool = False) -> Operator:
    """For inference: x (N, H, W, C), weight from `pack_weight`, bias (O)[, shortcut as the output] to `convolution`'s
    output plus the shortcut, through a ReLU or not. Has no gradient.

    narrow: the output and the shortcut are bfloat16, and x may be.
    """
    name = f"conv2d_packed{'_relu' * relu}"

    def shape(x: list, weight: list, bias: list, *shortcut: list) -> list:
        y = [x[0], -(-x[1] // stride), -(-x[2] // stride), bias[0]]
        filled = _filled(bias[0], weight[1] * weight[2] ** 2)
        inputs = [
            x[3],
            x[3] / 2,
            -(-x[3] * 9 // 32) * 16 if x[3] % 2 and weight[2] == 1 else x[3],
        ]  # as they are packed
        if weight[1] not in inputs:
            raise ValueError(f"{name}: weight: must be of {x[3]} channels, not {weight[1]}")
        _check(name, [filled, y], [weight[0], *shortcut], ["weight", "shortcut"])
        return y

    kind, wide = ms.bfloat16 if narrow else ms.float32, (ms.float32,)
    types = ((ms.float32, kind), wide, wide, (kind,))
    return Operator(f"{name}_{_suffix(stride, same, narrow)}", shape, types=types, output=kind)


def _filled(outputs: int, row: int) -> int:
    """Rows of packed weights, of so many numbers each: whole blocks, and room to move them onto a line of the cache."""
    return -(-outputs // block()) * block() + -(-32 // row)


def _suffix(stride: int, same: bool, bfloat16: bool) -> str:
    return f"{stride}{'_same' * same}{'_bfloat16' * bfloat16}"


def _convolved(name: str, stride: int) -> Callable:
    def shape(x: list, weight: list, *bias: list) -> list:
        _check(name, [x[3], [weight[0]]], [weight[1], *bias], ["weight's inputs", "bias"])
        return [x[0], -(-x[1] // stride), -(-x[2] // stride), weight[0]]

    return shape


def _check(name: str, wanted: list, shapes: list, what: list[str]) -> None:
    """The kernels trust the shapes that they are given, so they must fit: as many as there are."""
    for want, shape, which in zip(wanted, shapes, what):
        if shape != want:
            raise ValueError(f"{name}: {which}: must be {want}, not {shape}")


ADDED = ("", "add", "drop_branch", "drop_shortcut")


@functools.cache
def batch_norm(relu: bool = False, added: str = "") -> Operator:
    """Batch norm in training, with what follows it in one pass.

    x (N, H, W, C), gamma, beta, moving mean, moving variance (C), rule (2: eps, momentum)[, shortcut (N, H, W, C)[,
    scale (N)]] to y (N, H, W, C), mean and 1 / deviation (C). The moving ones move in place.

    Args:
        relu: y is what a ReLU makes of it.
        added: of `ADDED`. "": nothing; "add": the shortcut is added; "drop_branch": and each sample of the normalized x
            is multiplied by its scale before; "drop_shortcut": and each sample of the shortcut is.
    """
    name = f"{'_' * bool(added)}{added}{'_relu' * relu}"
    aside = bool(added) and (relu or added != "add")  # the shortcut's gradient is another than y's
    scaled = added not in ("", "add")
    gradient = Operator(
        f"batch_norm_gradient{name if aside else '_relu' * relu}",
        lambda x, dy, gamma, *_: (x, gamma, gamma, *[x] * aside),
        outputs=3 + aside,
    )

    def gradients(x, gamma, beta, moving_mean, moving_variance, rule, out, dout):
        behind = (out[0],) if relu else ()
        dx, dgamma, dbeta = gradient(x, dout[0], gamma, out[1], out[2], *behind)
        return (dx, dgamma, dbeta, *_zeros(moving_mean, moving_variance, rule))

    def gradients_added(x, gamma, beta, moving_mean, moving_variance, rule, shortcut, out, dout):
        if not aside:
            dx, dgamma, dbeta = gradient(x, dout[0], gamma, out[1], out[2])
            return (dx, dgamma, dbeta, *_zeros(moving_mean, moving_variance, rule), dout[0])
        dx, dgamma, dbeta, rest = gradient(x, dout[0], gamma, out[1], out[2], out[0])
        return (dx, dgamma, dbeta, *_zeros(moving_mean, moving_variance, rule), rest)

    def gradients_scaled(x, gamma, beta, moving_mean, moving_variance, rule, shortcut, scale, out, dout):
        behind = (out[0],) if relu else ()
        dx, dgamma, dbeta, rest = gradient(x, dout[0], gamma, out[1], out[2], *behind, scale)
        return (dx, dgamma, dbeta, *_zeros(moving_mean, moving_variance, rule), rest, zeros_like(scale))

    def shape(x: list, *others: list) -> tuple:
        what = ["gamma", "beta", "moving mean", "moving variance", "rule", "shortcut", "scale"]
        if x[0] * x[1] * x[2] == 1:
            raise ValueError(f"batch_norm: expected more than one value a channel when training, got input size {x}")
        _check("batch_norm", [[x[3]]] * 4 + [[2], x, x[:1]], list(others), what)
        return x, others[0], others[0]

    bprop = gradients_scaled if scaled else gradients_added if added else gradients
    return Operator(f"batch_norm{name}", shape, outputs=3, bprop=bprop).writing(6 + bool(added) + scaled, range(3, 5))


def _zeros(*inputs: Tensor) -> tuple:
    """Gradients of inputs that have none."""
    return tuple(zeros_like(each) for each in inputs)


@functools.cache
def channels_last() -> Operator:
    """Images (N, C, H, W) to (N, H, W, C)."""

    def gradient(x: Tensor, out: Tensor, dout: Tensor) -> tuple:
        return (ops.transpose(dout, (0, 3, 1, 2)),)

    return Operator("channels_last", lambda x: [x[0], *x[2:], x[1]], bprop=gradient)


@functools.cache
def upsample(half_pixel_centers: bool) -> Operator:
    """Bilinear upsampling without aligned corners: x (N, h, w, C), like (N, H, W, C) to (N, H, W, C)."""
    suffix = "_half_pixel" if half_pixel_centers else ""
    gradient = Operator(f"upsample_gradient{suffix}", lambda dy, x: x)

    def gradients(x: Tensor, like: Tensor, out: Tensor, dout: Tensor) -> tuple:
        return gradient(dout, x), zeros_like(like)

    return Operator(f"upsample{suffix}", lambda x, like: [x[0], *like[1:3], x[3]], bprop=gradients)


@functools.cache
def merge(half_pixel_centers: bool, narrow: bool = False) -> Operator:
    """x (N, h, w, C), like (N, H, W, C) to relu(like + `upsample`'s output), (N, H, W, C).

    narrow: all of them are bfloat16; then it has no gradient.
    """
    suffix = "_half_pixel" if half_pixel_centers else ""
    gradient, behind = (
        Operator(f"upsample_gradient{suffix}", lambda dy, x: x),
        Operator("relu_gradient", lambda dy, y: y),
    )

    def gradients(x: Tensor, like: Tensor, out: Tensor, dout: Tensor) -> tuple:
        dlike = behind(dout, out)
        return gradient(dlike, x), dlike

    def shape(x: list, like: list) -> list:
        _check("merge", [[x[0], x[3]]], [[like[0], like[3]]], ["images and channels"])
        return like

    kind = ms.bfloat16 if narrow else ms.float32
    name = f"merge{suffix}{'_bfloat16' * narrow}"
    return Operator(name, shape, bprop=None if narrow else gradients, types=((kind,),) * 2, output=kind)


@functools.cache
def pool() -> Operator:
    """x (N, H, W, C), of float32 or bfloat16, to the mean over its pixels (N, C)."""

    def gradient(x: Tensor, out: Tensor, dout: Tensor) -> tuple:
        share = dout / (x.shape[1] * x.shape[2])
        return (ops.broadcast_to(share.reshape((x.shape[0], 1, 1, x.shape[3])), x.shape),)

    return Operator("pool", lambda x: [x[0], x[3]], bprop=gradient, types=((ms.float32, ms.bfloat16),))


@functools.cache
def relu_of_bfloat16() -> Operator:
    """x of bfloat16 through a ReLU, which MindSpore does not have on a CPU. Has no gradient."""
    return Operator("relu_bfloat16", lambda x: x, types=((ms.bfloat16,),), output=ms.bfloat16)


@functools.cache
def sum_of_squares() -> Operator:
    """Any number of tensors to the sum of the squares of all that is in them, (1)."""
    return Operator("sum_of_squares", lambda *_: [1])


def momentum_update(count: int) -> Operator:
    """Nesterov's or plain momentum on `count` weights in place.

    rate () or (count), factor (), rules (count, 3: momentum, decay, 1 for Nesterov's or 0), all weights, all moments,
    all gradients: m = momentum * m + g + decay * w; w -= rate * (g + decay * w + momentum * m), or rate * m without
    Nesterov's, where g is the gradient times the factor.
    """
    return Operator("momentum", lambda *_: [1]).writing(3 + 3 * count, range(3, 3 + 2 * count))


def average_update(count: int) -> Operator:
    """decay (), then `count` averages, as many values: average = decay * average + (1 - decay) * value, in place."""
    return Operator("average", lambda *_: [1]).writing(1 + 2 * count, range(1, 1 + count))


@functools.cache
def mean_over_ranks() -> Operator:
    """Any number of tensors to as many: the mean of what the ranks have there, bit for bit the same on all.

    They must have met, `src.distributed.one_machine`; each waits there for the others.
    """
    return Operator("mean_over_ranks", lambda *tensors: tensors if len(tensors) > 1 else tensors[0], outputs=0)
