"""A model of ``transformers`` that decodes over a cache longer than what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx

import overlapc
from overlapc import options
from overlapc.dynamo import rewrite_before_autograd
from overlapc.reporting.records import Site
from overlapc.runtime import ops
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

    def text(self) -> str:
        """The first site, and its calls."""
        site = self.sites[0]
        return f"{site.decision} [{site.code}] {site.shape}\n{site.reason}\n{dict(site.calls)}"


def decode(
    family: str,
    implementation: str,
    choice: str,
    *,
    rows: int = 1,
    by_inductor: bool = True,
    padded: bool = False,
) -> Decoded:
    """Decode ``STEPS`` times ``rows`` tokens, compiled once, after a prompt that eager reads.

    What the compiled one's cache does not hold yet is NaN, which a weight of zero would not hide.
    ``padded``: the first sequence starts two tokens later, as its mask of padding says.
    Without ``by_inductor`` torch runs what the passes leave as it stands, which compiles faster.
    """
    import transformers

    torch._dynamo.reset()
    model = build(FAMILIES[family], implementation)
    torch.manual_seed(1)
    prompt = torch.randint(3, VOCABULARY, (BATCH, PROMPT))
    tokens = torch.randint(3, VOCABULARY, (STEPS, BATCH, rows))
    kept = torch.ones(BATCH, LONGEST, dtype=torch.long)
    kept[0, :2] = 0
    masks = {"attention_mask": kept} if padded else {}
    before, sites, found = len(overlapc.report().sites), [], {}
    called = {site: Counter(calls) for site, calls in ops._calls.items()}
    for name in ("compiled", "eager", "wide"):
        own: Any = in_float64(model) if name == "wide" else model
        cache: Any = transformers.StaticCache(config=own.config, max_cache_len=LONGEST)
        with torch.no_grad():
            own(prompt, past_key_values=cache, use_cache=True, **masks)
            step: Any = partial(_logits, own, cache, masks)
            if name == "compiled":
                for layer in cache.layers:
                    layer.keys[:, :, PROMPT:] = layer.values[:, :, PROMPT:] = torch.nan
                how: dict[str, Any] = {"backend": "overlapc", "options": {"softmax": choice}}
                if not by_inductor:
                    how = {"backend": _passes_alone(choice, sites)}
                step = torch.compile(step, fullgraph=True, **how)
            with torch._dynamo.config.patch(error_on_recompile=True):
                found[name] = torch.stack([step(ids) for ids in tokens])
    if by_inductor:
        sites = overlapc.report().sites[before:]
    new = [dict(ops.calls_of(site.id) - called.get(site.id, Counter())) for site in sites]
    own = [replace(site, calls=calls) for site, calls in zip(sites, new, strict=True)]
    return Decoded(**found, sites=own)


def _logits(model: Any, cache: Any, masks: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    return model(ids, past_key_values=cache, use_cache=True, **masks).logits


def _passes_alone(choice: str, sites: list[Site]) -> Callable[..., Any]:
    chosen = options.from_user({"softmax": choice})

    def backend(module: fx.GraphModule, examples: Any) -> Callable[..., Any]:
        for compilation in rewrite_before_autograd(module, chosen):
            sites.extend(compilation.sites)
        return module

    return backend
