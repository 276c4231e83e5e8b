"""A tensor-parallel MLP on two processes, compiled by overlapc, and what it did.

    torchrun --nproc-per-node 2 examples/quickstart.py

Over loopback the links are so fast that keeping the program as it is can be the right answer; the
report then says so.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import overlapc


def main() -> None:
    """Run one of the processes."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    mlp = parallelize_module(mlp, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    overlapc.calibrate(seconds=5)
    compiled = torch.compile(mlp, backend="overlapc")
    x = torch.randn(2048, 1024)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), mlp(x))
    if dist.get_rank() == 0:
        print(overlapc.report())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
