"""What the passes add to Inductor's compile time: one model, both backends, by turns.

``python -m benchmarks.compile_time`` compiles a tensor-parallel Llama of two layers on a fake group
of two ranks, forward and backward, with every cache off.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._inductor import config as inductor_config
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

import overlapc.backend as backend_module
from examples.llama_model import tensor_parallel

TARGET = "cpu"


class Stopwatch:
    """Seconds spent in our passes since the last reading."""

    def __init__(self) -> None:
        self.seconds = 0.0
        backend_module.run_passes = self._timed(backend_module.run_passes)
        before_autograd = backend_module.rewrite_before_autograd
        backend_module.rewrite_before_autograd = self._timed(
            lambda *args: list(before_autograd(*args))
        )

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return timed

    def read(self) -> float:
        """Return and reset."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def model() -> torch.nn.Module:
    """A Llama of two layers, split over two ranks as the demo splits its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        use_cache=False,
    )
    return tensor_parallel(LlamaForCausalLM(config), init_device_mesh("cpu", (2,)))


def compile_seconds(llama: torch.nn.Module, tokens: torch.Tensor, backend: str) -> float:
    """Seconds of the first forward and backward, cold."""
    torch._dynamo.reset()
    options: dict[str, Any] = {"overlap": "chunked", "target": TARGET}
    compiled = torch.compile(
        llama, backend=backend, options=options if backend == "overlapc" else None
    )
    start = time.perf_counter()
    compiled(tokens).logits.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    inductor_config.force_disable_caches = True
    stopwatch = Stopwatch()
    llama, tokens = model(), torch.randint(0, 256, (1, 128))
    seconds: dict[str, list[float]] = {"inductor": [], "overlapc": []}
    passes = []
    for turn in range(arguments.rounds + 1):
        for backend in random.sample(list(seconds), 2):
            taken = compile_seconds(llama, tokens, backend)
            spent = stopwatch.read()
            print(f"round {turn} of {arguments.rounds}, {backend}: {taken:.1f} s", flush=True)
            if turn == 0:
                continue  # imports and the compiler's own warm-up
            seconds[backend].append(taken)
            if backend == "overlapc":
                passes.append(spent / taken)
    pairs = zip(seconds["overlapc"], seconds["inductor"], strict=True)
    result = {
        "model": "Llama, 2 layers, hidden 256, 2 fake ranks, forward and backward, caches off",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
        "seconds_inductor_median": statistics.median(seconds["inductor"]),
        "seconds_overlapc_median": statistics.median(seconds["overlapc"]),
        "ratio_overlapc_to_inductor_median": statistics.median(o / i for o, i in pairs),
        "share_of_passes_median": statistics.median(passes),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "compile_time.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
