"""What torch puts around an attention: transforms of ``torch.func``."""

from __future__ import annotations

import torch

from tests.attention.catalogue import plain
from tests.attention.rewriting import rewrite


def spelled(q, k, v):
    return (q @ k.mT * 0.3).softmax(-1) @ v


def test_transforms_are_named():
    operands = plain()
    several = operands[0].expand(2, *operands[0].shape)

    def mapped(q, k, v):
        return torch.vmap(spelled, in_dims=(0, None, None))(q, k, v)

    done = rewrite(mapped, several, *operands[1:])
    assert done.codes == ["!transformed"]
    assert "vmap" in done.sites[0].reason
    assert "backward()" in done.sites[0].reason
