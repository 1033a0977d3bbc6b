"""What the tests of the C++ program share: building it, a network to run, images to run it on."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from PIL import Image

from src.models import create_model
from src.serving.description import describe, write_description
from src.serving.mindir import lower_mindir
from tests.golden import weights as golden

PROJECT = Path(__file__).parent.parent
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


BUILD = PROJECT / "ascend310_infer" / "build-test"


@lru_cache(maxsize=1)
def build() -> Path:
    """Build as a user does, fetching the runtime if need be, but with warnings as errors; returns the folder."""
    environment = {**os.environ, "PYTHON": sys.executable, "BUILD_DIR": str(BUILD)}
    environment.pop("MS_LITE_HOME", None)
    command = ["bash", str(PROJECT / "ascend310_infer" / "build.sh"), "-DCMAKE_CXX_FLAGS=-Werror"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return BUILD


def library_path() -> str:
    """LD_LIBRARY_PATH that the built program needs, from the env.sh that the build leaves."""
    command = f"unset LD_LIBRARY_PATH; source '{build()}/env.sh'; echo $LD_LIBRARY_PATH"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()


def run_main(*arguments: Any, cwd: Optional[Path] = None, **keywords: Any) -> subprocess.CompletedProcess:
    """Run the program; GLOG_v is left unset, as in a user's shell (importing our packages sets it here)."""
    environment = {name: value for name, value in os.environ.items() if name != "GLOG_v"}
    environment["LD_LIBRARY_PATH"] = library_path()
    command = [str(build() / "main"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, **keywords)


def spec(
    size: int = 64, batch: int = 1, classes: Optional[tuple[str, ...]] = CLASSES, **changes: Any
) -> dict[str, Any]:
    """What export.py writes beside a MindIR of format version 1, but for the file's checksum."""
    config = SimpleNamespace(
        arch="DDRNet23Slim",
        flavour="zoo",
        num_classes=len(classes) if classes else len(CLASSES),
        image_size=size,
        crop_mode="squash",
        crop_pct=0.875,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    names = list(classes) if classes else None
    return {**describe(config, names, (batch, 3, size, size)), "mindir_version": 1, **changes}


def eval_config(described: dict[str, Any]) -> SimpleNamespace:
    """The keys of the configuration that the evaluation transform reads."""
    names = ("image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    values = {name: described[name] for name in names}
    return SimpleNamespace(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def network(arch: str = "DDRNet23Slim", flavour: str = "zoo", num_classes: int = len(CLASSES)) -> nn.Cell:
    """A network with the golden files' weights, which follow from the parameters' names."""
    cell = create_model(arch, num_classes, flavour=flavour).set_train(False)
    for name, parameter in cell.parameters_dict().items():
        parameter.set_data(Tensor(golden.value(name, parameter.shape)))
    return cell


def export(cell: nn.Cell, path: Path, description: dict[str, Any], lower: bool = True) -> Path:
    """Write a network's MindIR, lowered unless told otherwise, and its description beside it."""
    shape = description["input"]["shape"]
    ms.export(cell, Tensor(np.zeros(shape, np.float32)), file_name=str(path), file_format="MINDIR")
    path.chmod(0o600)
    if lower:
        lower_mindir(str(path), str(path))
    write_description(path, description)
    return path


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture with hard edges in it, RGB."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
    pixels = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def save_folder(folder: Path, counts: dict[str, int]) -> list[Path]:
    """Write JPEGs, `counts` of each class, wider than tall; returns their paths in order."""
    paths = []
    for name, count in sorted(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            path = folder / name / f"{name}_{number}.JPEG"
            picture(90 + 7 * number, 60 + 3 * number, seed=len(paths)).save(path, quality=85)
            paths.append(path)
    return paths


def read_results(folder: Path) -> dict[str, np.ndarray]:
    """Result file names to logits."""
    return {path.name: np.fromfile(path, np.float32) for path in sorted(folder.iterdir())}
