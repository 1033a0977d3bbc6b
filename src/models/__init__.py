"""The networks. MindSpore is imported when one is built, so that reading the names of the family costs nothing."""

from src.errors import UserError
from src.models.architectures import ARCHITECTURES, FLAVOURS, HEAD, smallest_map

__all__ = ["ARCHITECTURES", "FLAVOURS", "HEAD", "create_model", "smallest_map"]


def create_model(
    arch: str = "DDRNet23",
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    flavour: str = "zoo",
    native: str = "",
    drop_path_on: str = "auto",
):
    """Build a classifier of the DDRNet family, initialised at random: convolutions as He et al. with the fan-out.

    Args:
        arch: a key of `ARCHITECTURES`.
        num_classes: how many logits.
        drop_path_rate: probability with which the last residual units drop a part of themselves while training;
            `architectures.drop_path_rates` has those of the others.
        flavour: "zoo" as the checkpoint published on MindSpore Hub, "paper" as the authors' PyTorch weights.
        native: for the CPU, build it of the kernels in `src.kernels`, with convolutions that multiply in "float32" or
            in "bfloat16" (what is between them is float32); "": of MindSpore's operators, for every device.
        drop_path_on: what drop path drops, "branch" or "shortcut"; "auto": as the flavour has it.

    Returns:
        An `nn.Cell` from float32 (N, 3, H, W), H and W at least 32, to logits (N, num_classes).

    Raises:
        UserError: `arch`, `flavour` or `drop_path_on` is unknown.
    """
    from src.models.ddrnet import DDRNet

    places = ("auto", "branch", "shortcut")
    choices = (("arch", arch, ARCHITECTURES), ("flavour", flavour, FLAVOURS), ("drop_path_on", drop_path_on, places))
    for key, value, known in choices:
        if value not in known:
            raise UserError(f"{key}: {value!r} is not one of {', '.join(known)}")
    from src.models.layers import Layers

    layers = Layers
    if native:
        from src.models.channels_last import LAYERS

        layers = LAYERS[native]
    drops = FLAVOURS[flavour].drop_path_on if drop_path_on == "auto" else drop_path_on
    return DDRNet(ARCHITECTURES[arch], FLAVOURS[flavour], num_classes, drop_path_rate, layers, drops)
