"""Attention that is to be left as it is, by what its reason says: a line each."""

from __future__ import annotations

import torch

from tests.attention.catalogue import Spelling, square


def weights_added(q, k, v):
    """As the residual of a product that they are no factor of."""
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    return torch.baddbmm((q @ k.mT).softmax(-1), q, v.mT)


def weights_squared(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return w @ w


SAID = {
    "weights_added": Spelling(
        weights_added, "!product", operands=square, says="At baddbmm, weights are added"
    ),
    "weights_squared": Spelling(
        weights_squared, "!product", operands=square, says="At matmul, weights are both factors"
    ),
}
