"""How large products of queries and keys can get, by the weights of the norms that made them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from overlapc.graphs.attention.norms.lengths import Normed
from overlapc.graphs.attention.reading.constants import computed
from overlapc.graphs.attention.site import Attention
from overlapc.runtime.weights import is_readable

ROUNDINGS = 6
"""Of each column of queries and of keys after the norm: as what it is cast to, weighed, cosine and
sine, times these, and their sum; each as coarse as the coarsest."""


def product_bound(found: Attention, weights: Mapping[fx.Node, torch.Tensor]) -> tuple[float, str]:
    """Return what no scaled product exceeds in nats, either sign, and why that is infinite, as a
    clause: empty where nothing is normed.

    With ``q = diag(g) u`` and ``k = diag(h) v`` a product is at most ``|u| |v| max |g_i h_i|``.
    Where pairs of columns are turned, each is as long as the larger of its two gains lets it be.
    """
    if isinstance(found.norms, str):
        return math.inf, found.norms
    sides = (found.norms.query, found.norms.key)
    columns = int(found.query.shape[-1])
    gains = [_gain(side, columns, weights) for side in sides]
    query, key = gains
    if query is None or key is None:
        return math.inf, "weights of its norms cannot be read"
    largest = query * key
    if any(side.is_turned for side in sides):
        pairs = [gain.view(2, columns // 2).amax(0) for gain in (query, key)]
        largest = pairs[0] * pairs[1]
    rounding = 1 + max(side.eps for side in sides)
    length = math.prod(side.radius for side in sides) * rounding ** (2 * ROUNDINGS)
    bound = abs(found.scale) * length * float(largest.max())
    if not math.isfinite(bound):
        return math.inf, "weights of its norms are no finite numbers"
    return bound, ""


def _gain(
    side: Normed, columns: int, weights: Mapping[fx.Node, torch.Tensor]
) -> torch.Tensor | None:
    """Absolute gains of the columns of a row, float64: of all heads that have their own, the
    largest. None where they cannot be read."""
    if not side.gain:
        return torch.ones(columns, dtype=torch.float64)
    given = {node: weights.get(node) for node in side.gain if node.op == "placeholder"}
    if any(value is None or not is_readable(value) for value in given.values()):
        return None
    with unset_fake_temporarily(), torch.no_grad():
        gain = computed(side.gain, given)
        if gain is None or gain.numel() % columns:
            return None
        return gain.double().abs().view(-1, columns).amax(0)
