"""A file's weights into a network. Every check comes before any effect: a file loads as a whole or changes nothing."""

import numpy as np

from src.errors import UserError
from src.weights.formats import read_weights
from src.weights.names import HEAD_PARAMETERS, STEM_BIASES, flavour_of, match_weights, with_stem_biases

_OTHER_FLAVOUR = {
    "paper": "trained in the paper's flavour (its stem has biases), with 3x3 convolutions of stride 2 padded on every "
    "side; this network pads them at the right and bottom only, which shifts what every layer sees and costs accuracy",
    "zoo": "trained in the zoo's flavour (its stem has no biases), with 3x3 convolutions of stride 2 padded at the "
    "right and bottom only; this network pads every side, which shifts what every layer sees and costs accuracy",
}


def load_pretrained(network, path: str, flavour: str = "zoo", drop_head: bool = False) -> list[str]:
    """Load a file's weights into a network, all of them or none, as `load_weights`.

    Raises:
        UserError: as `read_weights` and `load_weights`.
    """
    return load_weights(network, read_weights(path), path, flavour, drop_head)


def load_weights(
    network, arrays: dict[str, np.ndarray], path: str, flavour: str = "zoo", drop_head: bool = False
) -> list[str]:
    """Load the weights of a file that has been read into a network, all of them or none.

    Args:
        network: an `nn.Cell` of the family, from `create_model`.
        arrays: what `read_weights` found; names are MindSpore's or PyTorch's. An optimizer's state is passed over.
        path: the file, for messages.
        flavour: the network's, a key of `FLAVOURS`.
        drop_head: leave the last layer as it is where the file's has another number of classes.

    Returns:
        The names of the parameters that were left as they are; empty, or the last layer's.

    Raises:
        UserError: parameters are missing, surplus, of another shape or not finite; or the weights
            are of the other flavour.
    """
    from src.parameters import assign

    parameters = network.parameters_dict()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    left = []
    if drop_head:
        left = [name for name in HEAD_PARAMETERS if name in arrays and arrays[name].shape != shapes[name]]
        left = list(HEAD_PARAMETERS) if left else []
    if flavour == "zoo" and not any(arrays[name].any() for name in STEM_BIASES if name in arrays):
        # The zoo's weights as src.weights.convert writes them for PyTorch: biases of zero change nothing.
        arrays = {name: array for name, array in arrays.items() if name not in STEM_BIASES}
    found = flavour_of(arrays)
    expected = with_stem_biases(shapes, found)
    matched = match_weights(arrays, {name: shape for name, shape in expected.items() if name not in left}, path, left)
    if found != flavour:
        raise UserError(
            f"{path}: {_OTHER_FLAVOUR[found]}: add --flavour {found}, or, to use them all the same, "
            f"convert them with python -m src.weights.convert --flavour {flavour}"
        )
    for name, array in matched.items():
        assign(parameters[name], array)
    return left
