"""``generate`` of transformers from a long static cache, on a processor: Inductor and overlapc.

``python -m benchmarks.generate`` (some minutes) has one Llama with random weights generate from a
prompt of 2048 tokens in a cache of 8192, its decoding steps compiled by each backend in turn, and
writes benchmarks/results/generate.md. A step is all between two tokens: the compiled forward, and
what ``generate`` does around it, mask and sampling among it, which is the same for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import overlapc
from benchmarks.measuring.paired import Samples, round_orders
from benchmarks.measuring.results import about
from benchmarks.measuring.tables import listed

INDUCTOR, AGAIN, OVERLAPC, OFF = "inductor", "inductor again", "overlapc", "overlapc, softmax off"
CHOICES: Mapping[str, dict[str, Any]] = {
    INDUCTOR: {"backend": "inductor"},
    AGAIN: {"backend": "inductor"},
    OVERLAPC: {"backend": "overlapc"},
    OFF: {"backend": "overlapc", "options": {"softmax": "off"}},
}
"""What ``torch.compile`` is told."""


@dataclass(frozen=True)
class Sizes:
    """Of a model and of what it generates."""

    hidden: int = 1024
    inner: int = 2816
    layers: int = 4
    heads: int = 16
    key_heads: int = 4
    vocabulary: int = 32000
    cache: int = 8192
    prompt: int = 2048
    tokens: int = 32


@dataclass
class Clock:
    """A streamer of ``generate`` that notes when each token came."""

    times: list[float] = field(default_factory=list)

    def put(self, tokens: torch.Tensor) -> None:
        """The prompt comes first."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """After the last token there is nothing to note."""

    def seconds(self) -> float:
        """Of a step, from the first new token, which the uncompiled prefill gives, to the last."""
        _, first, *_, last = self.times
        return (last - first) / (len(self.times) - 2)


class Generation:
    """A model, and a cache that holds all of a prompt but its last token."""

    def __init__(self, sizes: Sizes) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.inner,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.key_heads,
            max_position_embeddings=sizes.cache,
        )
        self.sizes = sizes
        self.model: Any = LlamaForCausalLM(config).eval()
        self.prompt = torch.randint(3, sizes.vocabulary, (1, sizes.prompt))
        self.cache = StaticCache(config=config, max_cache_len=sizes.cache)
        with torch.no_grad():
            self.model(self.prompt[:, :-1], past_key_values=self.cache, logits_to_keep=1)

    def run(self, choice: Mapping[str, Any] | None, clock: Clock) -> list[int]:
        """The tokens that the prompt is continued with; steps are not compiled without a choice."""
        from transformers import CompileConfig

        compiling = None
        if choice is not None:
            # ``mode`` is by default one of CUDA graphs, and excludes options.
            compiling = CompileConfig(**{"mode": None, **choice})
            compiling._compile_all_devices = True  # pyright: ignore[reportAttributeAccessIssue]
        for layer in self.cache.layers:  # what lies behind is hidden, and written again
            layer.cumulative_length.fill_(self.sizes.prompt - 1)  # pyright: ignore
        found = self.model.generate(
            self.prompt,
            past_key_values=self.cache,
            compile_config=compiling,
            disable_compile=compiling is None,
            max_new_tokens=self.sizes.tokens,
            do_sample=False,
            eos_token_id=None,
            streamer=clock,
        )
        return found[0, self.sizes.prompt :].tolist()


def measured(generation: Generation, rounds: int) -> tuple[Samples, dict[str, int]]:
    """Seconds of a step, and how many tokens from the first on are those of Inductor."""
    tokens = {name: generation.run(choice, Clock()) for name, choice in CHOICES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    for order in round_orders(list(CHOICES), rounds, 0):
        for name in order:
            clock = Clock()
            generation.run(CHOICES[name], clock)
            seconds[name].append(clock.seconds())
    alike = {name: _alike(tokens[INDUCTOR], its) for name, its in tokens.items()}
    return Samples({name: tuple(its) for name, its in seconds.items()}), alike


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Up to where two sequences are the same."""
    pairs = list(zip(one, other, strict=True))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))


def page(sizes: Sizes, samples: Samples, alike: Mapping[str, int], head: Mapping[str, str]) -> str:
    """What was measured."""
    said = (
        f"`generate` of a Llama of {sizes.layers} layers, {sizes.hidden} wide, {sizes.heads} heads "
        f"over {sizes.key_heads} of keys, float32, greedy, {sizes.tokens} tokens from a prompt of "
        f"{sizes.prompt} in a static cache of {sizes.cache}. Rates are of the tokens after the "
        "first, whose pass is not compiled; ratios to Inductor are paired by round in random order,"
        " with their 95 % interval: above 1 the other is faster. `tokens alike`: up to where "
        "they are Inductor's."
    )
    lines = [
        "| compiled by | tokens/s | over inductor | tokens alike | rounds |",
        "|---|---|---|---|---|",
    ]
    for name in CHOICES:
        rate, ratio = 1 / samples.median(name), samples.ratio(INDUCTOR, name)
        lines.append(f"| {name} | {rate:.2f} | {ratio} | {alike[name]} | {samples.rounds} |")
    return "\n\n".join(["# generate", listed(head), said, "\n".join(lines)]) + "\n"


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser("python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tokens", type=int, help="to generate, by default 32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given, sizes = parser.parse_args(argv), sizes or Sizes()
    sizes = replace(sizes, tokens=given.tokens or sizes.tokens)
    head = about("benchmarks.generate", argv if argv is not None else sys.argv[1:], 1)
    head = {k: v for k, v in head.items() if k not in ("ranks", "link")}
    head["versions"] += f", transformers {metadata.version('transformers')}"
    text = page(sizes, *measured(Generation(sizes), given.rounds), head)
    decided = sorted({f"{s.kind}: {s.decision} [{s.code}]" for s in overlapc.report().sites})
    text += f"\noverlapc's sites were {', '.join(decided)}.\n"
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "generate.md").write_text(text)


if __name__ == "__main__":
    main()
