"""Run an attention on random operands by a kernel of our own and as a graph calls torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.attention.own import policy_of
from overlapc.planning.attention.table import AttentionShape, AttentionTrial
from overlapc.planning.attention.tile_names import PLANNED
from overlapc.planning.ratios import median_ratio, paired_ratios
from overlapc.runtime.attention.kernels import tiles_beside
from overlapc.runtime.attention.op import BY_TORCH
from overlapc.runtime.measuring.clocks import (
    COLD_BYTES,
    MOST_COPIES,
    Clock,
    on_device,
    on_host,
    seconds_of,
)
from overlapc.runtime.ops import calls_of

SITE = "trial of attention"
LIBRARY = "library"
MOST_BYTES = 2 << 30
"""Of keys and values of one trial: chosen."""

Operands = list[torch.Tensor]
"""Queries, keys, values, a mask for torch, and lengths for ours. Of a latent cache values are the
beginnings of keys."""


@dataclass(frozen=True)
class AttentionTrials:
    """One shape on one device."""

    shape: AttentionShape
    device: torch.device
    clock: Clock | None = None

    def fits(self, keys: int) -> bool:
        """Return whether operands of so many keys are small enough to try."""
        return self._bytes(keys) <= MOST_BYTES

    def trial(self, keys: int, seconds: float) -> AttentionTrial:
        """Compare both over so many keys, all of them valid, for about so many seconds; a mask that
        is given, where it keeps a quarter of them, too. Of several tiles of ours the fastest is
        found first, and then timed anew.

        Keys and values are read from cold caches. Zeros where no kernel of ours ran.
        """
        has_part = self.shape.mask == "given"
        operands = self._operands(keys, keys)
        beside = partial(tiles_beside, self._spec, shares_values=self.shape.is_latent)
        tiles = [
            tile for tile in (PLANNED, *beside(*operands[0][:3]))
            if self._runs_own(operands[0], tile)
        ]  # fmt: skip
        share = seconds / (1 + has_part + (len(tiles) > 1))
        best = self._fastest(tiles, operands, share) if len(tiles) > 1 else [*tiles, ""][0]
        found = self._trial(keys, operands, share, best)
        if not has_part or not best:
            return found
        del operands  # memory may be too small for two lists
        operands = self._operands(keys, max(keys // 4, self.shape.rows))
        part = self._trial(keys, operands, share, best)
        return replace(found, quarter_low=part.low, quarter_median=part.median)

    def _fastest(self, tiles: Sequence[str], operands: Sequence[Operands], seconds: float) -> str:
        """The tile whose median is least. Luck has a part in that: of three that are as fast as
        torch's, the one that looks fastest is found "surely" faster twice as often as a given one
        (simulated), so these times do not tell how it compares with torch's."""
        times = self._times(tiles, operands, seconds)
        return min(tiles, key=lambda tile: median(times[tile]))

    def _trial(
        self, keys: int, operands: Sequence[Operands], seconds: float, tile: str
    ) -> AttentionTrial:
        """Of one tile of ours, or of the library alone where there is none."""
        times = self._times([LIBRARY, tile] if tile else [LIBRARY], operands, seconds)
        library = sorted(times[LIBRARY])[len(times[LIBRARY]) // 2]
        if not tile:
            return AttentionTrial(keys, library, 0.0, 0.0, 0.0)
        ratio = median_ratio(paired_ratios(times[LIBRARY], times[tile]))
        return AttentionTrial(
            keys, library, max(ratio.low, 0.0), ratio.median, ratio.high, tile=tile
        )

    def _times(
        self, names: Sequence[str], operands: Sequence[Operands], seconds: float
    ) -> dict[str, list[float]]:
        """Seconds of the library or of tiles of ours, by name, in every round."""
        clock = self.clock or (on_device if self.device.type == "cuda" else on_host)
        runs: dict[str, Callable[[Sequence[torch.Tensor]], Any]] = {
            name: self._library if name == LIBRARY else partial(self._own, tile=name)
            for name in names
        }
        return seconds_of(runs, operands, clock, seconds, len(operands))

    def _runs_own(self, operands: Operands, tile: str) -> bool:
        calls = calls_of(SITE)
        before = calls[BY_TORCH]
        self._own(operands, tile)
        return calls[BY_TORCH] == before

    def _library(self, operands: Sequence[torch.Tensor]) -> torch.Tensor:
        """As transformers compiles it: under a mask heads are repeated."""
        query, key, value, mask, _ = operands
        if self.shape.is_latent:
            return self._products(query, key, value, mask)
        if self.shape.mask in ("given", "length"):
            if self.shape.groups > 1:
                key, value = (_repeated(side, self.shape.groups) for side in (key, value))
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=self.shape.mask == "causal",
            enable_gqa=self.shape.groups > 1,
        )  # fmt: skip

    def _products(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """As models multiply a latent cache: by the rows of all heads that share it at once."""
        s = self.shape
        sizes = (s.heads // s.groups, s.groups, s.rows)
        scores = query.unflatten(1, sizes[:2]).flatten(2, 3) @ key.mT * s.head_dim**-0.5
        if s.mask != "nothing":
            kept = mask[:, :, None]
            scores = scores.unflatten(2, sizes[1:]).masked_fill(~kept, -math.inf).flatten(2, 3)
        result = torch.softmax(scores, -1) @ value
        return result.unflatten(2, sizes[1:]).flatten(1, 2)

    def _own(self, operands: Sequence[torch.Tensor], tile: str = PLANNED) -> torch.Tensor:
        query, key, value, mask, lengths = operands
        is_given, has_length = self.shape.mask == "given", self.shape.mask == "length"
        if self.shape.is_latent:
            key = key[..., self.shape.value_dim :]
        result, _ = torch.ops.overlapc.attention(
            query, key, value, [mask] if is_given else [], lengths if has_length else None, None,
            None, str(replace(self._spec, tile=tile)), SITE,
        )  # fmt: skip
        return result

    @property
    def _spec(self) -> AttentionSpec:
        from overlapc.runtime.attention.masks import Filled, Input, program_of

        shape, has_length = self.shape, self.shape.mask == "length"
        kept = [Filled(Input("matrix", "bool"), -math.inf, True)] if shape.mask == "given" else []
        return AttentionSpec(
            shape.dtype,
            shape.head_dim,
            shape.value_dim,
            groups=shape.groups,
            scale=shape.head_dim**-0.5,
            after=0 if has_length or shape.mask == "causal" else None,
            align="bottom_right" if has_length else "top_left",
            lengths=has_length,
            program=program_of(kept),
            softmax=policy_of("unified", shape.dtype),
            lse=False,
        )

    def _bytes(self, keys: int) -> int:
        s = self.shape
        item = getattr(torch, s.dtype).itemsize
        columns = s.head_dim if s.is_latent else s.head_dim + s.value_dim
        return s.batch * s.heads // s.groups * keys * columns * item

    def _operands(self, keys: int, kept: int) -> list[Operands]:
        """One list a call: keys and values differ."""
        s, dtype = self.shape, getattr(torch, self.shape.dtype)
        shared = s.heads // s.groups

        def random_of(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, device=self.device).to(dtype)

        query = random_of(s.batch, s.heads, s.rows, s.head_dim)
        before = 0 if s.mask == "causal" else kept - s.rows
        own = torch.arange(s.rows, device=self.device)[:, None] + before
        mask = (torch.arange(keys, device=self.device) <= own)[None, None]
        lengths = torch.full((s.batch,), keys, dtype=torch.int32, device=self.device)
        copies = max(2, min(MOST_COPIES, math.ceil(COLD_BYTES / max(1, self._bytes(keys)))))
        found = []
        for _ in range(copies):
            key = random_of(s.batch, shared, keys, s.head_dim)
            begin = key[..., : s.value_dim]
            value = begin if s.is_latent else random_of(s.batch, shared, keys, s.value_dim)
            found.append([query, key, value, mask, lengths])
        return found


def _repeated(side: torch.Tensor, groups: int) -> torch.Tensor:
    batch, heads, keys, dim = side.shape
    wide = side[:, :, None].expand(batch, heads, groups, keys, dim)
    return wide.reshape(batch, heads * groups, keys, dim)
