"""Time PyTorch on what the C++ program does: image files to logits, with Pillow's decoding and resizing.

    python benchmarks/infer_310_torch.py --data DIR

Worker processes decode while the network runs on all cores. One JSON line: images a second, from the first file to the
last logit; starting the workers is counted, loading PyTorch and a first forward pass are not.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from torch_ddrnet import ddrnet23

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Folder(torch.utils.data.Dataset):
    """The images of a folder of class folders as (3, 224, 224) tensors."""

    def __init__(self, root: str) -> None:
        self.paths = sorted(path for path in Path(root).glob("*/*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.paths[index]).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)
        pixels = np.asarray(image.crop((16, 16, 240, 240)), np.float32) / 255
        return torch.from_numpy(np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    network, folder = ddrnet23().eval(), Folder(args.data)
    with torch.inference_mode():
        network(torch.zeros(args.batch_size, 3, 224, 224))
        start, count = time.perf_counter(), 0
        for images in torch.utils.data.DataLoader(folder, args.batch_size, num_workers=args.workers):
            count += len(network(images))
    print(json.dumps({"img_s": round(count / (time.perf_counter() - start), 2), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
