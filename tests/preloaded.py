"""What every rank of the tests has when it starts: imports, and what a first compilation asks.

Ranks are forked after it, so nothing here may start a thread (as autograd does) or use a device.
"""

import gc

import torch.distributed.tensor.parallel
import triton.runtime.cache
from torch._inductor import codecache, compile_fx, cpu_vec_isa

import overlapc.backend
from overlapc.runtime.programs import compiling
from tests.sparing import as_it_is, spare

__all__ = ["compile_fx", "overlapc", "torch"]

spare()
BY_INDUCTOR = compiling.by_inductor
# What Inductor makes of chains' steps is tried in a few tests and in benchmarks.varying_rows.
compiling.by_inductor = as_it_is
# Hashes of the sources of torch and triton, and the vector instructions that the C++ compiler
# knows: seconds in each process that has to ask itself.
codecache.torch_key()
triton.runtime.cache.triton_key()
cpu_vec_isa.valid_vec_isa_list()
# Ranks need not look for garbage in what is imported, nor copy its pages.
gc.freeze()
gc.set_threshold(10_000)
