"""Decoding by a model of Llama-3 8B's shape on a GPU: tokens a second, end to end.

Weights are random, the cache is a static one with a prompt in it. Peers are eager and Inductor with
``mode="reduce-overhead"``; the passes of attention and of linear layers are on and off by
themselves, each by a table that is measured first, at the batch's row count and the cache's keys.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch

import overlapc
from benchmarks.gpu.worker import Row, Skipped, WrongResult
from benchmarks.measuring.deadline import Deadline
from benchmarks.measuring.paired import Samples, round_orders
from overlapc.backend import backend
from overlapc.planning.target import Target
from overlapc.reporting.linears import describe_entry
from overlapc.tuning import attention, linear

TABLE_ROWS, SPEED = "Measured first", "Tokens a second"
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
SPEED_SECONDS = 10.0
"""For which a way and its peers are timed, once all are compiled."""
LINEAR_SECONDS, ATTENTION_SECONDS = 20.0, 5.0
"""For which all layers, and all attentions, of a step are measured."""
TOLERANCE = 0.05
"""Of logits, over the largest of eager's: bfloat16 rounds each layer by 0.4 %; chosen."""

EAGER, INDUCTOR = "eager", "inductor"
WAYS: dict[str, dict[str, Any]] = {
    "overlapc, both off": {"softmax": "off", "linear": "off"},
    "overlapc, attention": {"softmax": "auto", "linear": "off"},
    "overlapc, linear layers": {"softmax": "off", "linear": "auto"},
    "overlapc, both": {"softmax": "auto", "linear": "auto"},
}
"""The options of each way, the most telling last."""

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
def model() -> Any:
    """The model, of random weights; Skipped where nothing makes one."""
    try:
        from transformers import LlamaForCausalLM
    except ModuleNotFoundError as error:
        if error.name != "transformers":  # it is there, and lacks something
            raise
        raise Skipped("transformers is not installed") from error

    torch._dynamo.reset()
    # Every way is another compilation of the same code.
    torch._dynamo.config.recompile_limit = 64
    # ... and each batch of a process is compiled for itself, its sizes numbers.
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch.manual_seed(0)
    with torch.device(DEVICE):
        made: Any = LlamaForCausalLM(_config())
        return made.to(DTYPE).eval()


def _config() -> Any:
    from transformers import LlamaConfig

    longest = PROMPT + STEPS
    named: dict[str, Any] = {"max_position_embeddings": longest, "attn_implementation": "sdpa"}
    return LlamaConfig(**SHAPE, **named)


@lru_cache(maxsize=len(BATCHES))
def decoder(batch: int) -> Decoder:
    """The model with a prompt of random tokens for each sequence of a batch; Skipped where a static
    cache does not hold its length in a tensor, which graphs of CUDA read."""
    its = model()
    from transformers import StaticCache, __version__

    torch.manual_seed(batch)
    with torch.device(DEVICE), torch.no_grad():
        prompt = torch.randint(SHAPE["vocab_size"], (batch, PROMPT))
        tokens = torch.randint(SHAPE["vocab_size"], (STEPS, batch, 1))
        held = StaticCache(config=_config(), max_cache_len=PROMPT + STEPS)
        if not all(hasattr(layer, "cumulative_length") for layer in held.layers):
            raise Skipped(
                f"the static cache of transformers {__version__} has no cumulative_length"
            )
        its(prompt, past_key_values=held, use_cache=True, logits_to_keep=1)
    return Decoder(its, held, tokens)


@cache
def compiled(batch: int, name: str) -> Step:
    """One way to take a step; peers are compiled once for all ways beside which they run."""
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


def calibrate(deadline: Deadline, batch: int, tables_at: str) -> dict[str, Any]:
    """Measure the linear layers and the attentions of one step, in tables in a folder."""
    os.environ["XDG_CACHE_HOME"] = tables_at
    its = decoder(batch)
    given = its.step, (its.tokens[0],)
    with torch.no_grad():
        layers, shapes = linear.layers_of(*given), attention.shapes_of(*given)
    its.rewind()
    linears = linear.calibrate_linears(layers, rows=(batch,), seconds=LINEAR_SECONDS)
    said = [describe_entry(entry) for entry in linears.entries]
    if shapes:
        keys = (PROMPT + STEPS,)
        attentions = attention.calibrate_attentions(shapes, keys=keys, seconds=ATTENTION_SECONDS)
        said += [attention.describe(entry) for entry in attentions.entries]
    found = " / ".join(text.replace("\n", ";") for text in said)
    row = {"row": f"batch {batch}", "layers": len(layers), "attentions": len(shapes)}
    return {**row, "found": found}


def speed(deadline: Deadline, batch: int, name: str, tables_at: str) -> dict[str, Any]:
    """Tokens a second of one way, beside both peers in random order within each round."""
    os.environ["XDG_CACHE_HOME"] = tables_at  # also of a process that has measured nothing
    its = decoder(batch)
    before = {site.id for site in overlapc.report().sites}
    with torch.no_grad():
        steps = {one: compiled(batch, one) for one in (EAGER, INDUCTOR, name)}
        logits = {one: its.run(step) for one, step in steps.items()}
        wanted = logits[EAGER].float()
        error = ((logits[name].float() - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= TOLERANCE:
            raise WrongResult(f"logits are off by {error:.3g} of the largest")
        samples = timed(its, steps, Deadline.after(SPEED_SECONDS))
    tokens = batch * STEPS
    row: dict[str, Any] = {"row": f"batch {batch}, {name}", "off by": error}
    row |= {f"{one}, tokens/s": tokens / samples.median(one) for one in (EAGER, INDUCTOR)}
    row["tokens/s"] = tokens / samples.median(name)
    for peer in (EAGER, INDUCTOR):
        ratio = samples.ratio(peer, name)
        row[f"of {peer}"] = [ratio.median, ratio.low, ratio.high]
    return {**row, "sites": decisions(before)}


def decisions(before: Collection[str]) -> str:
    """How many sites of which kind became what, but for those that were there before."""
    new = [site for site in overlapc.report().sites if site.id not in before]
    found = Counter(f"{site.kind} {site.decision}" for site in new)
    return ", ".join(f"{count} {said}" for said, count in sorted(found.items())) or "none"


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
    """Every row, in the order in which they are measured: of each batch its tables and what tells
    most, and then the other ways."""
    here, (*others, last) = "benchmarks.gpu.model", WAYS
    # One folder each: a table has no problem twice, and those of all batches are the same.
    tables_at = {batch: tempfile.mkdtemp(prefix="overlapc-") for batch in BATCHES}

    def way(batch: int, name: str) -> Row:
        given = {"batch": batch, "name": name, "tables_at": tables_at[batch]}
        return Row(SPEED, f"batch {batch}, {name}", f"{here}.speed", given, limit=300)

    for batch in BATCHES:
        given = {"batch": batch, "tables_at": tables_at[batch]}
        yield Row(TABLE_ROWS, f"batch {batch}", f"{here}.calibrate", given, limit=240)
        yield way(batch, last)
    for name in reversed(others):
        for batch in BATCHES:
            yield way(batch, name)


def tables(done: Done, shipped: Target) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a page shows."""
    return {name: done.get(name, []) for name in reversed(TABLES)}
