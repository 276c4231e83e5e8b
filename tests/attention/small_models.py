"""Small models whose attention is spelled out, with scores of a size that a test chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

WIDTH, VOCABULARY = 64, 50


class Attention(nn.Module):
    """As in Llama: keys shared by groups, scaled after the product, its softmax in float32."""

    def __init__(self, heads: int, key_heads: int, spread: float) -> None:
        super().__init__()
        self.heads, self.key_heads, self.dim = heads, key_heads, WIDTH // heads
        self.q, self.k, self.v = (
            nn.Linear(WIDTH, count * self.dim, bias=False)
            for count in (heads, key_heads, key_heads)
        )
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        for side, count in ((self.q, heads), (self.k, key_heads)):
            # Each head has scores of a size of its own.
            scale = torch.linspace(0.5, 1.5, count)[:, None, None] * spread**0.5
            side.weight.data.unflatten(0, (-1, self.dim)).mul_(scale)

    def sides(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values, heads repeated."""
        parts = [side(x).unflatten(-1, (-1, self.dim)).transpose(1, 2)
                 for side in (self.q, self.k, self.v)]  # fmt: skip
        groups = self.heads // self.key_heads
        return [part if index == 0 else repeat(part, groups) for index, part in enumerate(parts)]

    def scores(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Before softmax."""
        q, k, _ = self.sides(x)
        return torch.matmul(q, k.transpose(2, 3)) * self.dim**-0.5 + mask

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.scores(x, mask), -1, dtype=torch.promote_types(
            x.dtype, torch.float32)).to(x.dtype)  # fmt: skip
        out = torch.matmul(weights, self.sides(x)[2])
        return self.o(out.transpose(1, 2).flatten(2))


class OfOpt(Attention):
    """As in OPT: queries are scaled before the product."""

    def sides(self, x: torch.Tensor) -> list[torch.Tensor]:
        q, k, v = super().sides(x)
        return [q * self.dim**-0.5, k, v]

    def scores(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, _ = self.sides(x)
        return torch.matmul(q, k.transpose(-1, -2)) + mask


class Model(nn.Module):
    """Layers of attention over embedded tokens, causal by a mask that is added."""

    def __init__(self, layers: Sequence[Attention]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        mask = mask_of(tokens.shape[1], x)
        for layer in self.layers:
            x = x + layer(self.norm(x), mask)
        return x

    def scores(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Those of each layer, masked ones minus infinity, in the dtype of the weights."""
        x, found = self.embed(tokens), []
        mask = mask_of(tokens.shape[1], x)
        for layer in self.layers:
            found.append(layer.scores(self.norm(x), mask).masked_fill(mask < 0, -math.inf))
            x = x + layer(self.norm(x), mask)
        return found


def repeat(side: torch.Tensor, groups: int) -> torch.Tensor:
    """As ``repeat_kv`` of transformers."""
    batch, heads, keys, dim = side.shape
    if groups == 1:
        return side
    wide = side[:, :, None, :, :].expand(batch, heads, groups, keys, dim)
    return wide.reshape(batch, heads * groups, keys, dim)


def mask_of(length: int, like: torch.Tensor) -> torch.Tensor:
    """The least number of float32 where a key comes later."""
    least = torch.finfo(torch.float32).min
    return torch.full((length, length), least, dtype=like.dtype, device=like.device).triu(1)


def llama(layers: int = 2) -> Model:
    """Scores of a few."""
    torch.manual_seed(0)
    return Model([Attention(4, 2, 4.0) for _ in range(layers)]).eval()


def opt(layers: int = 1) -> Model:
    """Scores of up to 500."""
    torch.manual_seed(0)
    return Model([OfOpt(4, 4, 400.0) for _ in range(layers)]).eval()


def prompts(*lengths: int) -> list[torch.Tensor]:
    """Two random sequences of each length."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (2, n), generator=generator) for n in lengths]
