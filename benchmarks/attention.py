"""Eager attention on a processor: Inductor against overlapc, paired.

``python -m benchmarks.attention`` compiles a Hugging Face Llama with eager attention, prefill and
decode, and attentions alone, forward and backward, and writes benchmarks/results/attention.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import overlapc
from benchmarks.measuring.paired import Alone, Samples, measure

BACKENDS = ("inductor", "inductor again", "overlapc")
BY_HAND = "sdpa"
"""Inductor, of a model whose attention its author has spelled as torch's own."""
FORCED = {"softmax": "sdpa"}
"""Every attention is fused, so that the table shows where that would not pay."""


@dataclass(frozen=True)
class Case:
    """One attention, spelled out as most models do."""

    name: str
    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    dim: int
    mask: str
    """"none", "causal" made in the graph, "padding": a tensor of finfo.min that is given, "length":
    made in the graph of the position of the row, which the graph is given, "given": booleans of the
    same, made before it is called, as `generate` of transformers does."""
    trains: bool = False
    is_fused: bool = False
    """It calls torch's attention, on heads that are repeated."""
    dtype: torch.dtype = torch.float32
    held: int = 0
    """Of "length" and "given": keys that the cache holds."""
    has_sink: bool = False
    """A score of each head takes part in the softmax and has no value, as in gpt-oss."""
    value_dim: int = 0
    """Columns of values; 0: those of keys."""


CASES = (
    Case("tiny", 1, 4, 4, 16, 16, 64, "none"),
    Case("short", 1, 8, 8, 64, 64, 64, "none"),
    Case("bert 128", 4, 12, 12, 128, 128, 64, "padding"),
    Case("gpt-2 128", 1, 12, 12, 128, 128, 64, "causal"),
    Case("gpt-2 256", 1, 12, 12, 256, 256, 64, "causal"),
    Case("chunk of 32 over 1024", 1, 16, 4, 32, 1024, 64, "padding"),
    Case("chunk of 128 over 1024", 1, 16, 4, 128, 1024, 64, "padding"),
    Case("bert 512", 1, 12, 12, 512, 512, 64, "padding"),
    Case("bert 512 without mask", 1, 12, 12, 512, 512, 64, "none"),
    Case("bert 512 x8", 8, 12, 12, 512, 512, 64, "padding"),
    Case("bert 1024", 1, 12, 12, 1024, 1024, 64, "padding"),
    Case("bert 2048", 1, 12, 12, 2048, 2048, 64, "padding"),
    Case("chunk of 256 over 2048", 1, 12, 12, 256, 2048, 64, "padding"),
    Case("gpt-2 512", 1, 12, 12, 512, 512, 64, "causal"),
    Case("llama 512", 1, 16, 4, 512, 512, 64, "causal"),
    Case("llama 2048", 1, 16, 4, 2048, 2048, 64, "causal"),
    Case("llama 512 padded", 1, 16, 4, 512, 512, 64, "padding"),
    Case("llama decode 256", 1, 16, 4, 1, 256, 64, "padding"),
    Case("llama decode 2048", 1, 16, 4, 1, 2048, 64, "padding"),
    Case("llama decode 2048 x8", 8, 16, 4, 1, 2048, 64, "padding"),
    Case("decode 2048 without groups", 1, 16, 16, 1, 2048, 64, "none"),
    Case("decode 64", 1, 8, 8, 1, 64, 64, "none"),
    Case("short trained", 1, 8, 8, 64, 64, 64, "causal", True),
    Case("gpt-2 128 trained", 1, 12, 12, 128, 128, 64, "causal", True),
    Case("gpt-2 256 trained", 1, 12, 12, 256, 256, 64, "causal", True),
    Case("gpt-2 512 trained", 1, 12, 12, 512, 512, 64, "causal", True),
    Case("llama 512 trained", 1, 16, 4, 512, 512, 64, "causal", True),
    Case("sdpa llama decode 256", 1, 16, 4, 1, 256, 64, "padding", is_fused=True),
    Case("sdpa llama decode 2048", 1, 16, 4, 1, 2048, 64, "padding", is_fused=True),
    Case("sdpa llama decode 2048 x8", 8, 16, 4, 1, 2048, 64, "padding", is_fused=True),
    Case("sdpa llama 512", 1, 16, 4, 512, 512, 64, "padding", is_fused=True),
    Case("sdpa llama 128", 1, 16, 4, 128, 128, 64, "padding", is_fused=True),
    Case("sdpa llama 2048", 1, 16, 4, 2048, 2048, 64, "padding", is_fused=True),
    Case("sdpa llama cache of 8192 full", 1, 16, 4, 1, 8192, 64, "length", False, True, held=8192),
    Case("sdpa llama 2048 of 8192", 1, 16, 4, 1, 8192, 64, "length", False, True, held=2048),
    Case("sdpa llama 2048 of 8192 x4", 4, 16, 4, 1, 8192, 64, "length", False, True, held=2048),
    Case("sdpa llama given 2048 of 8192", 1, 16, 4, 1, 8192, 64, "given", False, True, held=2048),
    Case("llama 512 bfloat16", 1, 16, 4, 512, 512, 64, "causal", dtype=torch.bfloat16),
    Case("sinks 192", 1, 16, 4, 192, 192, 64, "causal", has_sink=True),
    Case("sinks 256", 1, 16, 4, 256, 256, 64, "causal", has_sink=True),
    Case("sinks 512", 1, 16, 4, 512, 512, 64, "causal", has_sink=True),
    Case("sinks 512 padded", 1, 16, 4, 512, 512, 64, "padding", has_sink=True),
    Case("sinks 1024", 1, 16, 4, 1024, 1024, 64, "causal", has_sink=True),
    Case("sinks 1024 padded", 1, 16, 4, 1024, 1024, 64, "padding", has_sink=True),
    Case("sinks, chunk of 128 over 1024", 1, 16, 4, 128, 1024, 64, "padding", has_sink=True),
    Case("sinks, decode 2048", 1, 16, 4, 1, 2048, 64, "padding", has_sink=True),
    Case("sinks 512 trained", 1, 16, 4, 512, 512, 64, "causal", True, has_sink=True),
    Case("narrow values 1024", 1, 16, 2, 1024, 1024, 192, "causal", value_dim=128),
    Case("narrow values 1024 padded", 1, 16, 2, 1024, 1024, 192, "padding", value_dim=128),
    Case("narrow values 2048", 1, 16, 2, 2048, 2048, 192, "causal", value_dim=128),
    Case("narrow values 1024 over 2048", 1, 16, 2, 1024, 2048, 192, "padding", value_dim=128),
    Case("narrow values 1024, sinks", 1, 16, 2, 1024, 1024, 192, "causal", has_sink=True,
         value_dim=128),
    Case("narrow values 1024 padded, sinks", 1, 16, 2, 1024, 1024, 192, "padding", has_sink=True,
         value_dim=128),
)  # fmt: skip


def attention(case: Case) -> Callable[..., torch.Tensor]:
    """Return the case's attention, spelled out."""
    sinks = torch.randn(1, case.heads, 1, 1, dtype=case.dtype) if case.has_sink else None

    def spelled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        groups = case.heads // case.key_heads
        if case.mask == "length":
            own = torch.arange(case.rows) + m
            m = torch.arange(case.keys) <= own[None, None, :, None]
        if groups > 1:
            shape = (case.batch, case.key_heads, groups, case.keys, -1)
            k, v = (t[:, :, None].expand(shape).flatten(1, 2) for t in (k, v))
        if case.is_fused:
            result = F.scaled_dot_product_attention(q, k, v, attn_mask=m)
            return result.transpose(1, 2).contiguous()
        scores = q @ k.transpose(2, 3) * case.dim**-0.5
        if case.mask == "causal":
            later = torch.ones(case.rows, case.keys, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, torch.finfo(q.dtype).min)
        elif case.mask == "padding":
            scores = scores + m
        if sinks is not None:
            scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), -1)
            scores = scores - scores.max(-1, keepdim=True).values
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        weights = weights if sinks is None else weights[..., :-1]
        return (weights @ v).transpose(1, 2).contiguous()

    return spelled


def inputs_of(case: Case) -> list[torch.Tensor]:
    """Queries, keys, values as models hold them, ``[batch, rows, heads, dim]``, and a mask."""
    of_keys, value_dim = (case.keys, case.key_heads), case.value_dim or case.dim
    sizes = ((case.rows, case.heads, case.dim), (*of_keys, case.dim), (*of_keys, value_dim))
    operands = [
        torch.randn(case.batch, length, heads, dim, dtype=case.dtype).transpose(1, 2)
        for length, heads, dim in sizes
    ]
    if case.mask == "length":
        return [*operands, torch.tensor(case.held - case.rows)]
    if case.mask == "given":
        kept = torch.arange(case.keys) < case.held
        return [*operands, kept.expand(case.batch, 1, case.rows, case.keys).contiguous()]
    mask = torch.zeros(case.batch, 1, case.rows, case.keys, dtype=case.dtype)
    mask[..., : case.keys // 16] = torch.finfo(case.dtype).min
    return [*(t.requires_grad_(case.trains) for t in operands), mask]


def compiled(function: Any, backend: str, options: dict[str, Any]) -> Any:
    """Compile with one of ``BACKENDS``."""
    torch._dynamo.reset()
    if backend == "overlapc":
        return torch.compile(function, backend="overlapc", options=options)
    return torch.compile(function, backend="inductor")


def decided(case: Case) -> str:
    """What overlapc does where nothing is forced: ``kept [too_small]``."""
    (site,) = overlapc.explain(attention(case))(*inputs_of(case)).sites
    return f"{site.decision} [{site.code}]"


def callers(case: Case) -> dict[str, Callable[[], object]]:
    """A warm call for each backend: forward, and backward where the case trains."""
    inputs = inputs_of(case)
    found: dict[str, Callable[[], object]] = {}
    for backend in BACKENDS:
        run = compiled(attention(case), backend, FORCED)

        def call(run: Any = run) -> object:
            result = run(*inputs)
            return torch.autograd.grad(result.sum(), inputs[:3]) if case.trains else result

        call()
        call()
        found[backend] = call
    return found


def llama(layers: int, spelling: str = "eager") -> nn.Module:
    """A Llama of the demo's proportions, its attention spelled so; the same weights each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        use_cache=False,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=spelling).eval()


def model_callers(tokens: int) -> dict[str, Callable[[], object]]:
    """A prefill of ``tokens`` by each backend, ``overlapc`` with its own choice; and by hand."""
    found = {}
    ids = torch.randint(0, 1024, (1, tokens))
    for backend in (*BACKENDS, BY_HAND):
        model = llama(2, "sdpa" if backend == BY_HAND else "eager")
        run = compiled(model, backend, {})

        def call(run: Any = run) -> object:
            with torch.no_grad():
                return run(ids).logits

        call()
        call()
        found[backend] = call
    return found


def timed(candidates: dict[str, Callable[[], object]], seconds: float) -> Samples:
    """Rounds of about ``seconds`` in total; calls under 5 ms are repeated within one."""
    once = min(_seconds(candidates["inductor"]) for _ in range(3))
    repeats = max(1, int(0.005 / once))

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats):
                call()

        return run

    rounds = max(31, min(200, int(seconds / (3 * once * repeats))))
    several = {name: repeated(call) for name, call in candidates.items()}
    samples = measure(several, Alone(), rounds=rounds, seed=0)
    return Samples({name: tuple(t / repeats for t in v) for name, v in samples.seconds.items()})


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(name: str, samples: Samples, decision: str) -> str:
    """One line of the table."""
    milliseconds = [1e3 * samples.median(backend) for backend in ("inductor", "overlapc")]
    ratios = [
        str(samples.ratio("inductor", other)) if other in samples.seconds else ""
        for other in ("inductor again", "overlapc", BY_HAND)
    ]
    shown = [f"{value:.3f}" for value in milliseconds]
    return f"| {' | '.join([name, *shown, *ratios, str(samples.rounds), decision])} |"


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser("python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row, about")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rows = [
        (case.name, lambda case=case: callers(case), lambda case=case: decided(case))
        for case in CASES
    ]
    rows += [
        (f"Llama, prefill of {n}", lambda n=n: model_callers(n), lambda: "as decided")
        for n in (128, 512, 1024, 2048)
    ]
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads,"
        f" {time.strftime('%Y-%m-%d')}."
        " Ratios are of Inductor's time, paired by round, with their 95 % interval."
        " Single attentions are always rewritten here; the last column is what happens by itself."
        " By hand: Inductor, where the model's author chose torch's own attention.",
        "",
        "| attention | inductor, ms | overlapc, ms | again | overlapc | by hand | rounds |"
        " by itself |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, make, decide in rows:
        if arguments.only in name:
            lines.append(row(name, timed(make(), arguments.seconds), decide()))
            print(lines[-1], flush=True)
            if not arguments.only:  # row by row: a run that is cut short leaves what it measured
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / "attention.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
