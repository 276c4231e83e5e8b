"""What a drawn attention must give in float64, how far off roundings may be, and what is redone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen import attention_oracle as oracle
from tests.codegen.drawn_attentions import Drawn

STEPS = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of the dtypes' roundings."""
OF_TF32 = 2.0**-9
"""Of products of numbers of which each lost the bits that tf32 has not."""
MASKED = 1e8
"""Scores of this size are masks, of which float32 keeps no product."""
SUBNORMAL = 2.0**-25
"""Rounding of a weight of float16 beside the largest, where it is below 2^-14 of that."""
MARGIN = 0.02
"""Relative, of a sum of weights that might lie on either side of a limit."""


@dataclass(frozen=True)
class Wanted:
    """Of each row of each head, and element of the result."""

    out: torch.Tensor
    lse: torch.Tensor
    allowed: torch.Tensor
    allowed_lse: torch.Tensor
    size: torch.Tensor
    """Weighted means of absolute values: what roundings of weights are relative to."""
    least_redone: int
    most_redone: int
    scores: torch.Tensor


def step_of(spec: AttentionSpec) -> float:
    """Of the roundings of weights, values and results."""
    return OF_TF32 if spec.precision == "tf32" else STEPS[spec.dtype]


def sides(drawn: Drawn, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as they are multiplied, one head of keys for each of queries."""
    q, k, v = (side.to(dtype) for side in (drawn.q, drawn.k, drawn.v))
    if drawn.scales:
        k, v = (side * scale.to(dtype)[:, None, None]
                for side, scale in zip((k, v), drawn.scales, strict=True))  # fmt: skip
    k, v = (side.repeat_interleave(drawn.spec.groups, 1) for side in (k, v))
    return q, k, v


def scores_of(drawn: Drawn, dtype: torch.dtype, off: float = 0.0) -> torch.Tensor:
    """Scores as eager makes them in ``dtype``, of products ``off`` by so many roundings."""
    q, k, _ = sides(drawn, dtype)
    product = drawn.spec.scale * (q @ k.mT)
    if off:
        size = drawn.spec.scale * (q.abs() @ k.abs().mT)
        product = product + off * 2.0**-24 * size.nan_to_num(0.0, 0.0, 0.0)
    inputs = [t.to(dtype) if t.is_floating_point() else t for t in drawn.inputs]
    return oracle.evaluate(drawn.spec, product, inputs).expand(product.shape)


def wanted_of(drawn: Drawn) -> Wanted:
    """Return what eager gives, of masks as float32 has them."""
    spec = drawn.spec
    q, k, v = sides(drawn, torch.float64)
    exact, plain = scores_of(drawn, torch.float64), scores_of(drawn, torch.float32).double()
    is_mask = (plain.abs() >= MASKED) | plain.isinf()
    scores = torch.where(is_mask, plain, exact)
    # By how much scores may be off: rounded products, and what was seen of float32.
    apart = (exact - plain).abs() * 4 + 2.0**-20 * exact.abs()
    most = OF_TF32 * 2.0**24 if spec.precision == "tf32" else 16.0
    for off in (most, -most):
        apart = torch.maximum(apart, (scores_of(drawn, torch.float64, off) - exact).abs())
    apart = torch.where(is_mask, _lost_in(plain), apart).nan_to_num(0.0, 0.0, 0.0)
    seen = oracle.visible(spec, q, k, drawn.lengths)
    scores = scores.masked_fill(~seen, -math.inf)
    sinks = torch.full(scores.shape[:3], -math.inf, dtype=torch.float64)
    if drawn.sinks is not None:
        sinks = drawn.sinks.double()[None, :, None].expand(scores.shape[:3])
    every = torch.cat((scores, sinks[..., None]), -1)
    weights = every.softmax(-1)[..., :-1]
    if spec.dead == "zero":
        weights = weights.masked_fill((every == -math.inf).all(-1, keepdim=True), 0.0)
    out, lse = weights @ v, every.logsumexp(-1)
    if not scores.shape[3]:
        out = torch.zeros_like(out)
    step = step_of(spec)
    worst = _largest_error(scores, sinks, weights, apart)
    factor = torch.expm1((2 * worst).clamp(max=50.0))
    v_size = v.abs().nan_to_num(0.0, 0.0, 0.0)
    size = weights.nan_to_num(0.0) @ v_size
    allowed = size * (factor[..., None] + 3 * step) + step * out.abs() + 1e-30
    # Weights, and results, below the normal numbers.
    tiny = SUBNORMAL if spec.dtype == "float16" else 2.0**-126
    allowed = allowed + tiny * (1 + v_size.sum(-2, keepdim=True))
    allowed_lse = worst + 3 * step + 2.0**-21 * lse.nan_to_num(0.0, 0.0, 0.0).abs()
    phi = phi_of(drawn)
    if phi is not None:
        allowed_lse = allowed_lse + 2.0**-22 * phi.nan_to_num(0.0, 0.0, 0.0).abs()[:, None]
    allowed_lse = allowed_lse.masked_fill(lse.isfinite() & (lse.abs() > 1e30), math.inf)
    redone = _redone(drawn, scores, sinks, seen, worst, v, out)
    return Wanted(out, lse, allowed, allowed_lse, size, *redone, scores)


def _lost_in(plain: torch.Tensor) -> torch.Tensor:
    """What is lost of products in masks of rows that have different ones: in a row of such alone,
    how these are rounded decides which key has the weight."""
    if not plain.shape[3]:
        return plain
    masks = torch.where((plain.abs() >= MASKED) & plain.isfinite(), plain, math.nan)
    highest = masks.nan_to_num(-math.inf).amax(-1, keepdim=True)
    differs = highest > masks.nan_to_num(math.inf).amin(-1, keepdim=True)
    return torch.where(differs, 2.0**-22 * plain.abs(), 0.0)


def _largest_error(
    scores: torch.Tensor, sinks: torch.Tensor, weights: torch.Tensor, apart: torch.Tensor
) -> torch.Tensor:
    """Of scores that matter in each row, and of what is taken from them."""
    if not scores.shape[3]:
        return torch.zeros_like(sinks)
    weights = weights.nan_to_num(0.0)
    matters = weights > 1e-9 * weights.amax(-1, keepdim=True)
    highest = torch.maximum(scores.amax(-1), sinks).abs()
    highest = torch.where(highest < MASKED, highest, 0.0).nan_to_num(0.0)
    return torch.where(matters, apart, 0.0).amax(-1) + 2.0**-21 * highest


def phi_of(drawn: Drawn) -> torch.Tensor | None:
    """φ of each head, where it is known before keys are read."""
    every = drawn.q.shape[1]
    match drawn.spec.softmax:
        case "zero" | "bound":
            return torch.full((every,), drawn.spec.bound, dtype=torch.float64)
        case "head" | "running":
            assert drawn.phi is not None
            return drawn.phi.double()
        case "sink":
            assert drawn.sinks is not None
            return drawn.sinks.double().nan_to_num(0.0, 0.0, 0.0)
    return None


def _redone(
    drawn: Drawn, scores: torch.Tensor, sinks: torch.Tensor, seen: torch.Tensor,
    worst: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
) -> tuple[int, int]:  # fmt: skip
    """The least and the most rows that the check of each row may find."""
    spec = drawn.spec
    if not scores.shape[3]:
        return 0, 0
    highest = torch.maximum(scores.amax(-1), sinks)
    is_dead = highest == -math.inf
    phi = phi_of(drawn)
    if phi is None:
        lowest = torch.where(scores > -math.inf, scores, math.inf).amin(-1)
        apart = torch.maximum(highest, sinks) - torch.minimum(lowest, highest)
        room = 9.0 if spec.dtype == "float16" else 55.0
        is_good = (apart < room) & out.isfinite().all(-1)
        return 0, int((~is_good & ~is_dead).sum())
    kept = _rounded((scores - phi[:, None, None]).exp(), spec)
    of_keys = kept.sum(-1)
    sums = of_keys + (sinks - phi[:, None]).exp().float().double()
    safe = spec.safe_sums
    # What is lost beside a sink that is not below φ is lost beside the maximum too.
    is_beside = (sinks >= phi[:, None]) | ~seen.any(-1)
    least = torch.maximum(torch.tensor(safe.least), seen.sum(-1) * safe.least_each)
    least = torch.where(is_beside, safe.least, least)
    judged = torch.where(is_beside, sums, of_keys)
    total = (kept @ v.nan_to_num(0.0, 0.0, 0.0).abs()).amax(-1)
    about = worst.exp() * (1 + MARGIN)
    highest_weight = (scores.amax(-1) - phi[:, None]).exp()
    is_near = False
    if spec.dtype == "float16":
        # Weights about the largest number, and those that are rounded to few bits.
        is_near = (highest_weight > 6e4) & (highest_weight < 7e4)
        about = about * (1 + 0.5 * (least > 0) * (highest_weight < 2.0**-12))
    is_bad = (judged * about < least) | (sums / about > safe.most) | (total / about > 4e38)
    is_good = (judged / about >= least) & (sums * about <= safe.most) & (total * about < 1e38)
    is_plain = out.isfinite().all(-1)
    # Whether such rows see no key some programs tell without a look at keys.
    is_bad &= ~((scores == -math.inf).all(-1) & (sums >= safe.least))
    is_good, is_bad = is_good & is_plain & ~is_near, is_bad & is_plain & ~is_near
    return int((is_bad & ~is_dead).sum()), int((~is_good & ~is_dead).sum())


def _rounded(weights: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """As they meet values; what a float32 has as subnormal is zero on devices."""
    weights = weights.float().to(getattr(torch, spec.dtype)).double()
    return torch.where(weights < 2.0**-126, 0.0, weights) if spec.dtype != "float16" else weights
