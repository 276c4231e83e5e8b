"""A model of ``transformers`` that decodes over a cache longer than what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import overlapc
from overlapc.reporting.records import Site
from tests.attention.families import FAMILIES, VOCABULARY, build, in_float64

BATCH, PROMPT, STEPS, LONGEST = 2, 5, 4, 48


@dataclass
class Decoded:
    """Logits of every step, and what was compiled."""

    compiled: torch.Tensor
    eager: torch.Tensor
    wide: torch.Tensor
    """Of eager in float64."""
    sites: list[Site]

    def error(self, which: str) -> float:
        """The largest deviation from float64."""
        return (getattr(self, which).double() - self.wide).abs().max().item()


def decode(
    family: str, implementation: str, choice: str, *, rows: int = 1, poisoned: bool = False
) -> Decoded:
    """Decode ``STEPS`` times ``rows`` tokens, compiled once, after a prompt that eager reads.

    ``poisoned``: what the compiled one's cache does not hold yet is NaN.
    """
    import transformers

    torch._dynamo.reset()
    model = build(FAMILIES[family], implementation)
    torch.manual_seed(1)
    prompt = torch.randint(3, VOCABULARY, (BATCH, PROMPT))
    tokens = torch.randint(3, VOCABULARY, (STEPS, BATCH, rows))
    before = len(overlapc.report().sites)
    found = {}
    for name in ("compiled", "eager", "wide"):
        own: Any = in_float64(model) if name == "wide" else model
        cache: Any = transformers.StaticCache(config=own.config, max_cache_len=LONGEST)
        with torch.no_grad():
            own(prompt, past_key_values=cache, use_cache=True)
            if poisoned and name == "compiled":
                for layer in cache.layers:
                    layer.keys[:, :, PROMPT:] = layer.values[:, :, PROMPT:] = torch.nan
            step: Any = partial(_logits, own, cache)
            if name == "compiled":
                step = torch.compile(
                    step, backend="overlapc", fullgraph=True, options={"softmax": choice}
                )
            with torch._dynamo.config.patch(error_on_recompile=True):
                found[name] = torch.stack([step(ids) for ids in tokens])
    return Decoded(**found, sites=overlapc.report().sites[before:])


def _logits(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, past_key_values=cache, use_cache=True).logits
