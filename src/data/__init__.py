"""The input pipeline: image folders to training and evaluation batches."""

from src.data.augment.transforms import load_eval_image
from src.data.imagenet import Batches, class_names, create_dataset

__all__ = ["Batches", "class_names", "create_dataset", "load_eval_image"]
