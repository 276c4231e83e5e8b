"""Masks that are given to an attention and hide many of its keys, in every spelling of one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from overlapc.codegen.attention.scores import PRODUCT
from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref

LEAST = torch.finfo(torch.float32).min
FILLS = {"infinite": -math.inf, "least": LEAST, "weak": -65504.0, "low": -2e9}
"""What is added to a score to take its key away; "weak" may be a score like others, and "low" is
far from both."""


@dataclass(frozen=True)
class HidingMask:
    """Of scores ``[batch, heads, rows, keys]``, random but for what is said here."""

    sizes: tuple[int, int, int, int]
    kept: tuple[tuple[tuple[int, int], ...], ...]
    """Of each sequence, ranges of its keys, of which each row keeps most; it keeps no others."""
    fill: str = ""
    """A key of ``FILLS``; empty: the mask is of booleans."""
    dims: str = "brk"
    """Along which of "bhrk" it differs; it has one element along others."""
    apart: int = 0
    """Keys by which what a head keeps lies further on than what the head before it does."""
    documents: tuple[int, ...] = ()
    """Where each document of a sequence ends: of the keys a row keeps those of its own alone."""
    dead_row: int | None = None
    """A row that keeps no key."""
    dtype: str = "float32"
    """Of what is added."""
    seed: int = 0

    @property
    def keeps(self) -> torch.Tensor:
        """Which keys are kept, of sizes of one where it is the same for all."""
        generator = torch.Generator().manual_seed(self.seed)
        own = [size if d in self.dims else 1 for d, size in zip("bhrk", self.sizes, strict=True)]
        keeps = torch.zeros(own, dtype=torch.bool)
        for b, ranges in enumerate(self.kept):
            for low, high in ranges:
                part = torch.rand((*own[1:3], high - low), generator=generator) < 0.8
                part[..., -1] = True
                keeps[b, ..., low:high] = part
        for head in range(own[1] if self.apart else 0):
            keeps[:, head] = keeps[:, head].roll(head * self.apart, -1)
        if self.documents:
            ends = torch.tensor(self.documents)
            of_rows, of_keys = (torch.bucketize(torch.arange(n), ends, right=True) for n in own[2:])
            keeps &= of_rows[:, None] == of_keys
        if self.dead_row is not None:
            keeps[:, :, self.dead_row] = False
        return keeps

    @property
    def tensor(self) -> torch.Tensor:
        """What a kernel is given."""
        if not self.fill:
            return self.keeps
        dtype = getattr(torch, self.dtype)
        fill = max(FILLS[self.fill], torch.finfo(dtype).min) if self.fill == "least" else (
            FILLS[self.fill]
        )  # fmt: skip
        return torch.zeros(self.keeps.shape, dtype=dtype).masked_fill(~self.keeps, fill)

    @property
    def program(self) -> str:
        """The text of the program of scores that reads it."""
        shape = "matrix" if "r" in self.dims else "vector"
        score, given = Ref("value", 0), Ref("input", 0)
        if self.fill:
            mask = Call("aten.add.Tensor", (score, given))
        else:
            mask = Call("aten.where.ScalarOther", (given, score, -math.inf))
        return str(Epilogue((Input(shape, self.dtype if self.fill else "bool"),), (PRODUCT, mask)))

    @property
    def for_oracle(self) -> tuple[str, torch.Tensor]:
        """A program of scores and its input that say the same in float64, which loses no score."""
        if self.fill != "least":
            return self.program, self.tensor
        item, chosen = Input("matrix", "bool"), (Ref("input", 0), Ref("value", 0), LEAST)
        fill = Call("aten.where.ScalarOther", chosen)
        return str(Epilogue((item,), (PRODUCT, fill))), self.keeps

    def applied(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores under the mask as eager makes them, which loses them in the least number."""
        if not self.fill:
            return scores.masked_fill(~self.keeps, -math.inf)
        added = scores.float() + self.tensor.float()
        # Below the least number there is only infinity, and of both a row is the mean.
        added = added.nan_to_num(math.nan, math.inf, LEAST) if self.fill == "least" else added
        return torch.where(self.keeps, scores, added.double())

    def hidden_tiles(self, block: int, groups: int) -> torch.Tensor:
        """Keys of tiles that no kernel has to read, ``[batch, heads of keys, keys]``: hidden from
        every row of the ``groups`` of heads that share them."""
        batch, heads, _, keys = self.sizes
        if self.fill == "weak":
            return torch.zeros(batch, heads // groups, keys, dtype=torch.bool)
        kept = self.keeps.expand(self.sizes)
        alive = kept.any(-1, keepdim=True)
        # A row of finite masks alone is the mean of all values.
        needed = kept | (~alive & (self.fill in ("least", "low")))
        of_keys = needed.any(2).unflatten(1, (-1, groups)).any(2)
        tiles = torch.nn.functional.pad(of_keys, (0, -keys % block)).unflatten(-1, (-1, block))
        return ~tiles.any(-1).repeat_interleave(block, -1)[..., :keys]
