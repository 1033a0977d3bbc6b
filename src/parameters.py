"""New values for parameters that a compiled graph may hold."""

from typing import Union

import numpy as np
from mindspore import Parameter, Tensor, ops


def assign(parameter: Parameter, values: Union[np.ndarray, Tensor]) -> None:
    """Write values of the same shape into a parameter, in the parameter's own memory.

    `Parameter.set_data` hands the parameter other memory instead. Once a graph has been compiled that writes to it in
    one of its branches, the graph goes on with the old memory, and the parameter as the host sees it stands still.
    """
    ops.assign(parameter, Tensor(values, parameter.dtype))
