"""DDRNet on MindSpore. Importing this package sets three defaults in the environment and takes two names out of it.

From MindSpore 2.9 on, oneDNN runs every convolution in its reference kernel where the processor has AVX-512, a hundred
times slower than its AVX2 kernels; the cap takes effect if it is set before the first operator runs. And MindSpore's
own warnings, which concern its developers, stay out of the log; GLOG_v=2 in the environment brings them back. NumPy's
BLAS, of which we use little, starts no threads: they would compete with MindSpore's and catch signals
(`trainers/signals.py`).

Where standard input, output or error are closed, /dev/null stands in for them: a checkpoint that was opened in their
place would get what libraries print.

A rank table that a platform names, as ModelArts does by itself, is kept from MindSpore: that reads the name when it is
imported, and takes another backend, or in 2.8 and later a way to start that no longer exists. `src.distributed.join`
reads the table instead.
"""

import os

__version__ = "1.0.0"  # written into checkpoints and exported files; CHANGELOG.md says what changed

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("GLOG_v", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

TABLES = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH")
RANK_TABLE = next(filter(None, [os.environ.pop(name, "") for name in TABLES]), "")  # its path; '': there is none

while (_descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
os.close(_descriptor)
