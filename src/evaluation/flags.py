"""The flags of eval.py and eval_onnx.py that are no keys of the configuration."""

IMAGES, REPORT, PREDICTIONS = "--images", "--report", "--predictions"

FLAGS = [
    (IMAGES, {"nargs": "+", "metavar": "IMAGE", "help": "classify these files, folders and patterns instead of val/"}),
    (REPORT, {"metavar": "FOLDER", "help": "also write a report of val/: a page, tables and pictures"}),
    (PREDICTIONS, {"metavar": "CSV", "help": "also write what the network says of each image"}),
]
