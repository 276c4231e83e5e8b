"""Programs compiled with attention of our own, run by Triton's interpreter.

Runs in a process of the ``interpreted`` fixture.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import overlapc
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.runtime.attention.op import redone_of
from overlapc.runtime.ops import calls_of
from overlapc.tuning.softmax import calibrate_softmax
from tests.attention import (
    catalogue,
    latent_cache,
    narrow_cache,
    normed,
    random_scores,
    score_functions,
    small_models,
)
from tests.attention.rewriting import rewrite

correct_interpreter()

MANY = 70
"""Rows that are no decode."""


def scaled_up(q: Any, k: Any, v: Any) -> Any:
    """Scores of hundreds."""
    return torch.softmax(400.0 * q @ k.transpose(-1, -2), -1) @ v


def padded(q: Any, k: Any, v: Any, keep: Any) -> Any:
    """Rows that keep no key."""
    scores = (q @ k.transpose(-1, -2)).masked_fill(~keep, -math.inf)
    return torch.softmax(scores, -1) @ v


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """A bias of each head and key, added with a factor."""
    scores = torch.add(q @ k.transpose(-1, -2) / 3.0, bias, alpha=0.5)
    return torch.softmax(scores.float(), -1).to(v.dtype) @ v


def _operands(dtype: torch.dtype = torch.float32, rows: int = 20) -> list[torch.Tensor]:
    return [torch.randn(2, 3, size, 16).to(dtype) for size in (rows, 40, 40)]


def _far(rows: int) -> list[torch.Tensor]:
    """Scores of some hundreds."""
    q, k, v = _operands(rows=rows)
    q[..., 0], k[..., 0] = 1000.0, 1.0
    return [q, k, v]


def _dead() -> list[torch.Tensor]:
    keep = torch.rand(2, 1, MANY, 40) < 0.8
    keep[0, 0, :3] = False
    return [*_operands(rows=MANY), keep]


PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "plain": (catalogue.functional, catalogue.plain),
    "causal": (catalogue.causal_by_indices, catalogue.square),
    "scaled up": (scaled_up, _operands),
    "dead rows": (padded, _dead),
    "far": (catalogue.functional, lambda: _far(20)),
    "many far": (catalogue.functional, lambda: _far(MANY)),
    "many scaled up": (scaled_up, lambda: _operands(rows=MANY)),
    "biased": (
        biased,
        lambda: [*_operands(torch.bfloat16, MANY), torch.randn(3, 1, 40).bfloat16()],
    ),
    "grouped": (catalogue.REWRITTEN["interleaved"].function, catalogue.grouped),
    "soft-cap": (score_functions.capped_then_causal, catalogue.square),
    "sinks": (
        score_functions.with_sinks,
        lambda: [*catalogue.plain(), *catalogue.bias(), *score_functions.sinks_of_heads()],
    ),
    "off by one": (
        score_functions.off_by_one,
        lambda: [*catalogue.plain(), *catalogue.keep(), *catalogue.bias()],
    ),
    "latent": (latent_cache.two_products, latent_cache.operands),
    "latent half": (
        latent_cache.two_products,
        lambda: [side.half() for side in latent_cache.operands()],
    ),
    "narrow": (narrow_cache.spelled, narrow_cache.operands),
    "narrow, scaled": (narrow_cache.scaled, narrow_cache.of_heads),
    "positions": (
        catalogue.added,
        lambda: [*_operands(rows=MANY), torch.rand(3, 1, 1) * 40 * torch.arange(40.0)],
    ),
}


def run(name: str, choice: str) -> tuple[str, str, dict[str, int], str, int | None, float]:
    """Decision, code, calls, reason and redone rows of the one site, and the largest error against
    float64."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    function, make = PROGRAMS[name]
    inputs = make()
    before = len(overlapc.report().sites)
    with torch.no_grad():
        found = torch.compile(function, backend="overlapc", options={"softmax": choice})(*inputs)
        wide = [t.double() if t.is_floating_point() else t for t in inputs]
        wanted = function(*wide)
    (site,) = overlapc.report().sites[before:]
    assert found.dtype == inputs[0].dtype
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.isnan(), wanted.isnan())
    error = (found.double() - wanted).abs().nan_to_num(0.0).max().item()
    return site.decision, site.code, dict(site.calls), site.reason, site.redone_rows, error


def running(name: str, calls: int) -> tuple[str, str, list[int], float]:
    """Code and reason of the one site, rows redone in each of some calls on other operands, and the
    largest error against float64 of the size of a value."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    function, make = PROGRAMS[name]
    before = len(overlapc.report().sites)
    compiled = torch.compile(function, backend="overlapc", options={"softmax": "running"})
    redone, errors = [], []
    for _ in range(calls):
        inputs = make()
        with torch.no_grad():
            found = compiled(*inputs)
            wanted = function(*(t.double() for t in inputs))
        errors.append((found.double() - wanted).abs().max().item())
        redone.append((redone_of(overlapc.report().sites[before].id) or 0) - sum(redone))
    (site,) = overlapc.report().sites[before:]
    return site.code, site.reason, redone, max(errors)


def drawn(seed: int) -> tuple[str, float]:
    """What was drawn, and the largest error of a random function of scores, of the values' size."""
    chosen = random_scores.draw(seed)
    inputs = (*random_scores.operands(seed), *chosen.beside)
    with torch.no_grad():
        done = rewrite(chosen.function, *inputs, softmax="unified")
        found = done.function(*inputs)
        wide = [t.double() if t.is_floating_point() else t for t in inputs]
        wanted = chosen.function(*wide)
    torch.testing.assert_close(found.isnan(), wanted.isnan())
    error = (found.double() - wanted).abs().nan_to_num(0.0).max().item()
    return chosen.name, error / max(wanted.nan_to_num(0.0).abs().max().item(), 1e-30)


def decode(implementation: str, rows: int) -> Any:
    """A Llama over a static cache, of which what it does not hold is NaN."""
    from tests.attention import static_cache

    return static_cache.decode("llama", implementation, "unified", rows=rows)


def varying(rows: tuple[int, ...]) -> tuple[int, dict[str, int], float]:
    """Graphs, calls and largest error of an attention that is called with other rows and keys."""
    torch.manual_seed(0)
    with torch.no_grad():
        done = rewrite(
            catalogue.functional, *catalogue.plain(5, 9), dynamic=True, softmax="unified"
        )
        errors = []
        for count in rows:
            inputs = catalogue.plain(count, count + 20)
            wanted = catalogue.functional(*(t.double() for t in inputs))
            errors.append((done.function(*inputs).double() - wanted).abs().max().item())
    (site,) = done.sites
    return len(done.after), dict(calls_of(site.id)), max(errors)


def padded_cache(rows: int) -> tuple[str, dict[str, int], float]:
    """Spec, calls and largest error of rows over a cache under padding; NaN beyond its length."""
    torch.manual_seed(0)
    keys, kept = 40, torch.ones(2, 40, dtype=torch.bool)
    kept[0, :20] = kept[1] = False  # a sequence of padding alone gives zeros

    def function(q: Any, k: Any, v: Any, offset: Any) -> Any:
        own = (torch.arange(rows) + offset)[None, None, :, None]
        mask = (torch.arange(keys)[None, None, None, :] <= own) & kept[:, None, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    q, k, v = (torch.randn(2, 4, n, 16) for n in (rows, keys, keys))
    offset = torch.tensor(25)
    wanted = function(q.double(), k.double(), v.double(), offset)
    k[:, :, 25 + rows :] = v[:, :, 25 + rows :] = torch.nan
    with torch.no_grad():
        done = rewrite(function, q, k, v, offset, softmax="unified")
        error = (done.function(q, k, v, offset).double() - wanted).abs().max().item()
    return done.after[-1], dict(calls_of(done.sites[0].id)), error


def calibrated(name: str, batches: int) -> tuple[str, list[str], int, float]:
    """The code, what ran, redone rows and the error against float64 of a small model that so many
    batches have calibrated."""
    model = {"llama": small_models.llama, "opt": small_models.opt}[name](layers=1)
    tokens = small_models.prompts(24, 17)
    if batches:
        calibrate_softmax(model, [((one,), {}) for one in tokens[:batches]])
    return _compiled(model, tokens[0])


def _compiled(model: Any, tokens: torch.Tensor) -> tuple[str, list[str], int, float]:
    torch._dynamo.reset()
    before = {
        site.id: (Counter(site.calls), redone_of(site.id) or 0) for site in overlapc.report().sites
    }
    with torch.no_grad():
        found = torch.compile(model, backend="overlapc", options={"softmax": "unified"})(tokens)
        wanted = copy.deepcopy(model).double()(tokens)
    site = overlapc.report().sites[-1]
    calls, redone = before.get(site.id, (Counter[str](), 0))
    ran = [way.split(",")[0] for way in (Counter(site.calls) - calls).elements()]
    error = (found - wanted).abs().max().item()
    return site.code, ran, (redone_of(site.id) or 0) - redone, error


def normed_twice() -> list[tuple[float, dict[str, int], int]]:
    """Error, calls and rows redone, before and after gains grow in place beyond their bound."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, found = normed.Attention(), []
    before = len(overlapc.report().sites)
    compiled = torch.compile(model, backend="overlapc", options={"softmax": "unified"})
    with torch.no_grad():
        for gain in (1.0, 8.0):
            model.q.mul_(gain)
            model.k.mul_(gain)
            inputs = normed.operands()
            wide = copy.deepcopy(model).double()
            error = compiled(*inputs) - wide(*(side.double() for side in inputs))
            (site,) = overlapc.report().sites[before:]
            found.append((error.abs().max().item(), dict(site.calls), redone_of(site.id) or 0))
    return found
