"""Decoding by a model of Llama-3 8B's shape on a GPU: tokens a second, end to end.

Weights are random, the cache is a static one with a prompt in it. Peers are eager and Inductor with
``mode="reduce-overhead"``; the passes of attention and of linear layers are on and off by
themselves, linear layers by a table that is measured first, at the batch's row count.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from benchmarks.deadline import Deadline
from benchmarks.gpu_chains import WrongResult
from benchmarks.gpu_worker import Row, Skipped
from benchmarks.paired import Samples, round_orders
from overlapc.backend import backend
from overlapc.linear_tuning import calibrate_linears, describe, layers_of
from overlapc.planning.target import Target

TABLE_ROWS, SPEED = "Linear layers, measured first", "Tokens a second"
TABLES = (TABLE_ROWS, SPEED)

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""Llama-3 8B's."""
BATCHES = (1, 16)
PROMPT, STEPS = 1024, 16
"""Tokens in the cache, and those of one timed run, which all begin there."""
DEVICE, DTYPE, MODE = "cuda", torch.bfloat16, "reduce-overhead"
LEAST_ROUNDS, MOST_ROUNDS = 7, 40
CALIBRATION_SECONDS = 60.0
TOLERANCE = 0.05
"""Of logits, over the largest of eager's: bfloat16 rounds each layer by 0.4 %; chosen."""

EAGER, INDUCTOR = "eager", "inductor"
WAYS: dict[str, dict[str, Any]] = {
    "overlapc, both off": {"softmax": "off", "linear": "off"},
    "overlapc, attention": {"softmax": "auto", "linear": "off"},
    "overlapc, linear layers": {"softmax": "off", "linear": "auto"},
    "overlapc, both": {"softmax": "auto", "linear": "auto"},
}
"""The options of each way."""

Done = Mapping[str, Sequence[Mapping[str, Any]]]
Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Decoder:
    """A model, a cache that holds a prompt for a batch, and the tokens that follow."""

    model: Any
    cache: Any
    tokens: torch.Tensor
    """int64[STEPS, batch, 1]."""

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of one more token of each sequence; the cache grows."""
        return self.model(ids, past_key_values=self.cache, use_cache=True).logits

    def rewind(self) -> None:
        """Let the cache hold the prompt alone again."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(PROMPT)

    def run(self, step: Step) -> torch.Tensor:
        """Decode ``STEPS`` tokens; the last logits."""
        self.rewind()
        logits = None
        for ids in self.tokens:
            torch.compiler.cudagraph_mark_step_begin()
            logits = step(ids)
        assert logits is not None
        return logits.clone()


@lru_cache(maxsize=1)
def decoder(batch: int) -> Decoder:
    """The model with a prompt of random tokens for each sequence of a batch; Skipped where a static
    cache does not hold its length in a tensor, which graphs of CUDA read."""
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache, __version__

    torch._dynamo.reset()
    compiled_once.cache_clear()
    # Every way is another compilation of the same code.
    torch._dynamo.config.recompile_limit = 64
    longest = PROMPT + STEPS
    named: dict[str, Any] = {"max_position_embeddings": longest, "attn_implementation": "sdpa"}
    config = LlamaConfig(**SHAPE, **named)
    cache = StaticCache(config=config, max_cache_len=longest)
    if not all(hasattr(layer, "cumulative_length") for layer in cache.layers):
        raise Skipped(f"the static cache of transformers {__version__} has no cumulative_length")
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model: Any = LlamaForCausalLM(config)
        model = model.to(DTYPE).eval()
        prompt = torch.randint(SHAPE["vocab_size"], (batch, PROMPT))
        tokens = torch.randint(SHAPE["vocab_size"], (STEPS, batch, 1))
        with torch.no_grad():
            model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Decoder(model, cache, tokens)


def compiled(batch: int, name: str) -> Step:
    """One way to take a step."""
    its = decoder(batch)

    def step(ids: torch.Tensor) -> torch.Tensor:
        return its.step(ids)

    if name == EAGER:
        return step
    if name == INDUCTOR:
        return torch.compile(step, mode=MODE, fullgraph=True)
    # The function, not its name: nothing need be installed.
    patched = {**WAYS[name], "inductor": dict(torch._inductor.list_mode_options(MODE))}
    return torch.compile(step, backend=backend, options=patched, fullgraph=True)


@lru_cache(maxsize=2)
def compiled_once(batch: int, name: str) -> Step:
    """A way that every row compares with: compiled once for the model of a batch."""
    return compiled(batch, name)


def calibrate(deadline: Deadline, batch: int) -> dict[str, Any]:
    """Measure the linear layers of one step, in a table of this process's own."""
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="overlapc-")
    its = decoder(batch)
    with torch.no_grad():
        layers = layers_of(its.step, (its.tokens[0],))
    its.rewind()
    table = calibrate_linears(layers, rows=(batch,), seconds=deadline.left())
    said = [describe(entry).replace("\n", ";") for entry in table.entries]
    return {"row": f"batch {batch}", "layers": len(said), "found": " / ".join(said)}


def speed(deadline: Deadline, batch: int, name: str) -> dict[str, Any]:
    """Tokens a second of one way, beside both peers in random order within each round."""
    its = decoder(batch)
    with torch.no_grad():
        steps = {one: compiled_once(batch, one) for one in (EAGER, INDUCTOR)}
        steps[name] = compiled(batch, name)
        logits = {one: its.run(step) for one, step in steps.items()}
        wanted = logits[EAGER].float()
        error = ((logits[name].float() - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= TOLERANCE:
            raise WrongResult(f"logits are off by {error:.3g} of the largest")
        samples = timed(its, steps, deadline)
    tokens = batch * STEPS
    row: dict[str, Any] = {"row": f"batch {batch}, {name}", "off by": error}
    row |= {f"{one}, tokens/s": tokens / samples.median(one) for one in (EAGER, INDUCTOR)}
    row["tokens/s"] = tokens / samples.median(name)
    for peer in (EAGER, INDUCTOR):
        ratio = samples.ratio(peer, name)
        row[f"of {peer}"] = [ratio.median, ratio.low, ratio.high]
    return row


def timed(its: Decoder, steps: Mapping[str, Step], deadline: Deadline) -> Samples:
    """Seconds of whole runs on the host's clock: what a user waits for."""
    for step in steps.values():  # graphs of CUDA are recorded in the second run
        its.run(step)
        its.run(step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index, order in enumerate(round_orders(list(steps), MOST_ROUNDS, seed=0)):
        if index >= LEAST_ROUNDS and not deadline.left():
            break
        for name in order:
            _synchronize()
            start = time.perf_counter()
            its.run(steps[name])
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return Samples({name: tuple(values) for name, values in seconds.items()})


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def rows(done: Done, shipped: Target) -> Iterator[Row]:
    """Every row, in the order in which they are measured: a batch's table before its ways."""
    here = "benchmarks.gpu_model"
    for batch in BATCHES:
        yield Row(
            TABLE_ROWS, f"batch {batch}", f"{here}.calibrate", {"batch": batch},
            seconds=CALIBRATION_SECONDS, limit=240,
        )  # fmt: skip
        for name in reversed(WAYS):  # the most telling first
            given = {"batch": batch, "name": name}
            named = f"batch {batch}, {name}"
            yield Row(SPEED, named, f"{here}.speed", given, seconds=10, limit=300)


def tables(done: Done, shipped: Target) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a page shows."""
    return {name: done.get(name, []) for name in reversed(TABLES)}
