"""An exported ONNX file in ONNX Runtime. Imports no MindSpore: such a file is served where there is none."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

import numpy as np

from src.errors import UserError
from src.files import parse_json, read_bytes
from src.serving.description import check_described, check_names

PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider", "Ascend": "CANNExecutionProvider"}
LARGEST = 2**31 - 1  # bytes of a file: protobuf's own limit
TRANSFORM = {"crop_mode", "crop_pct", "interpolation", "mean", "std"}  # what a description says of it
QUIET = 3  # ONNX Runtime's log: errors alone


def knows_device(device_target: str) -> bool:
    """Whether the ONNX Runtime that is installed was built for a device."""
    return PROVIDERS[device_target] in _runtime().get_available_providers()


class OnnxNetwork:
    """Images, float32 (N, 3, H, W), to logits, float32 (N, num_classes), by a file that export.py wrote.

    Args:
        path: the ONNX file.
        device_target: CPU, GPU or Ascend.
        device_id: which card.

    Attributes:
        description: what export.py put into the file: arch, num_classes, classes, mean, std, crop and so on.
        batch_size: images that it takes at once; None: any number.
        runtime: what runs it, with its version.

    Raises:
        UserError: ONNX Runtime is not installed or does not know the device; the file cannot be read, is damaged, or is
            not from export.py.
    """

    def __init__(self, path: Union[str, Path], device_target: str = "CPU", device_id: int = 0) -> None:
        provider = PROVIDERS[device_target]
        if not knows_device(device_target):
            raise UserError(
                f"device_target: {device_target} needs an ONNX Runtime with {provider}, which this one is not; "
                "say --device_target CPU"
            )
        onnxruntime = _runtime()
        path = Path(path)
        check_described(path)
        data = read_bytes(path, LARGEST)
        onnxruntime.set_default_logger_severity(QUIET)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        cards = {} if device_target == "CPU" else {"device_id": str(device_id)}
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=[(provider, cards)])
        except Exception as error:  # its exceptions have no common class but this
            raise UserError(f"{path}: not an ONNX file, or a damaged one; export it again") from error
        if self._session.get_providers()[0] != provider:
            raise UserError(f"device_target: {device_target} {device_id} is not there; say --device_target CPU")
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.description = read_metadata(self._session.get_modelmeta().custom_metadata_map)
        self._check_shapes(path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: images})[0]

    def _check_shapes(self, path: Path) -> None:
        """The file must be of one input and one output, whose shapes are as its description says."""
        foreign = UserError(
            f"{path}: not from export.py: it must take images (N, 3, H, W), return logits (N, num_classes), and say in "
            "its metadata what it was trained for; write it with export.py --file_format ONNX"
        )
        inputs, outputs, spec = self._session.get_inputs(), self._session.get_outputs(), self.description
        if len(inputs) != 1 or len(outputs) != 1 or {inputs[0].type, outputs[0].type} != {"tensor(float)"}:
            raise foreign
        size, count = spec.get("image_size"), spec.get("num_classes")
        classes = spec.get("classes")
        if list(inputs[0].shape[1:]) != [3, size, size] or list(outputs[0].shape[1:]) != [count]:
            raise foreign
        if not spec.keys() >= TRANSFORM:  # what it lacks would be taken from somewhere else
            raise foreign
        check_names(path, count, classes)
        self._input = inputs[0].name
        batch = inputs[0].shape[0]
        self.batch_size: Optional[int] = batch if isinstance(batch, int) else None


def _runtime() -> ModuleType:
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise UserError("an ONNX file runs in ONNX Runtime, which is not installed; pip install onnxruntime") from error


def read_metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata of a file as `write_onnx` was given them: what is no JSON is text."""
    values = {}
    for key, text in metadata.items():
        try:
            values[key] = parse_json(text)
        except (ValueError, RecursionError):
            values[key] = text
    return values
