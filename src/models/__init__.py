"""The networks. MindSpore is imported when one is built, so that reading the names of the family costs nothing."""

from src.errors import UserError
from src.models.architectures import ARCHITECTURES, FLAVOURS

__all__ = ["ARCHITECTURES", "FLAVOURS", "create_model"]


def create_model(
    arch: str = "DDRNet23",
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    flavour: str = "zoo",
    native: str = "",
):
    """Build a classifier of the DDRNet family, initialised at random (He et al., fan-out).

    Args:
        arch: a key of `ARCHITECTURES`.
        num_classes: how many logits.
        drop_path_rate: probability of dropping the deepest residual branch while training; 0 at the input's end.
        flavour: "zoo" as the checkpoint published on MindSpore Hub, "paper" as the authors' PyTorch weights.
        native: for the CPU, build it of the kernels in `src.kernels`, with convolutions that multiply in "float32" or
            in "bfloat16" (what is between them is float32); "": of MindSpore's operators, for every device.

    Returns:
        An `nn.Cell` from float32 (N, 3, H, W), H and W at least 32, to logits (N, num_classes).

    Raises:
        UserError: `arch` or `flavour` is unknown.
    """
    from src.models.ddrnet import DDRNet

    for key, value, known in (("arch", arch, ARCHITECTURES), ("flavour", flavour, FLAVOURS)):
        if value not in known:
            raise UserError(f"{key}: {value!r} is not one of {', '.join(known)}")
    if native:
        from src.models.channels_last import LAYERS

        layers = LAYERS[native]
    else:
        from src.models.layers import Layers as layers
    return DDRNet(ARCHITECTURES[arch], FLAVOURS[flavour], num_classes, drop_path_rate, layers)
