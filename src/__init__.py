"""DDRNet on MindSpore. Importing this package makes MindSpore's convolutions fast on the CPU, nothing else.

From MindSpore 2.9 on, oneDNN runs every convolution in its reference kernel where the processor has AVX-512, a hundred
times slower than its AVX2 kernels. The cap takes effect if it is set before the first operator runs.
"""

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
