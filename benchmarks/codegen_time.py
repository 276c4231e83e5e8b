"""What generating the kernel of a site takes: from its program to an imported module on disk.

``python -m benchmarks.codegen_time`` needs no GPU. Machine code is not part of it: that is made by
Triton at a site's first call, and kept in Triton's own cache on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.gemm.chains import EPILOGUES
from overlapc.codegen import builder
from overlapc.planning.target import Target
from overlapc.planning.tiles import tiles_for
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref
from overlapc.runtime.signaled import kernels
from overlapc.runtime.spec import ChainSpec

M, N, K = 4096, 1024, 512
TARGET = "h200-nvlink"


def sites() -> Iterator[tuple[ChainSpec, list[torch.Tensor]]]:
    """Chains with their operands, which have no content."""
    for modes, steps in EPILOGUES.values():
        program = Program(modes, steps, Ref("value", len(steps) - 1))
        more = [(N,) if mode == WHOLE else (M, N) for mode in modes[2:]]
        shapes = [(M, K), (N, K), *more]
        a, weight, *rest = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in shapes)
        assert modes[:2] == (ROWS, WHOLE)
        yield (
            ChainSpec("gemm_all_reduce", target="", options="", program=program),
            [a, weight.t(), *rest],
        )


def seconds_of_each() -> list[float]:
    """Of every site with every tile; none may have been generated before in this process."""
    target, taken = Target.load(TARGET), []
    for spec, operands in sites():
        for tile in tiles_for(target.architecture, "bfloat16"):
            kernels._lower.cache_clear()  # each site lowers its own program
            start = time.perf_counter()
            found, _ = kernels.kernel_spec_of(spec, target, operands, tile)
            builder.build(found)
            taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Print the figures and write them as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.codegen_time", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        first, *others = seconds_of_each()
    result = {
        "command": "python -m benchmarks.codegen_time",
        "date": time.strftime("%Y-%m-%d"),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "sites": len(others) + 1,
        "ms_of_the_first": 1e3 * first,
        "ms_of_another_median": 1e3 * statistics.median(others),
        "ms_of_another_most": 1e3 * max(others),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "codegen_time.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
