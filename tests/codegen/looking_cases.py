"""What is written of hidden tiles before a kernel of many rows, and what of masks is read for it.

Runs in a process of the ``interpreted`` fixture.
"""

from __future__ import annotations

import math
from unittest.mock import patch

import torch

from overlapc.codegen.attention.checking import Sizes
from overlapc.codegen.attention.kernel import build_attention, input_parts
from overlapc.codegen.attention.looking import KeptTiles
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from tests.codegen.attention_cases import loads_of, looking_through_masks, mutant
from tests.codegen.score_programs import ADDED

BLOCK = 16
LOWEST = {"least": torch.finfo(torch.float32).min, "infinite": -math.inf}


def keeps(kind: str, batch: int, heads: int, rows: int, keys: int) -> torch.Tensor:
    """Which keys rows keep."""
    row, key = torch.arange(rows)[:, None], torch.arange(keys)
    head = torch.arange(heads)[:, None, None]
    every = torch.arange(batch)[:, None, None, None]
    found = {
        "causal": key <= row,
        "window": (key <= row) & (key > row - 32),
        "cached": key <= row + (keys - rows),
        "padded on the left": (key <= row) & (key >= keys // 4 * (1 + every)),
        "padded on the right": key < keys // 4 * (2 + every) - 3 + row * 0,
        "a row of nothing": (key <= row) & (row % BLOCK != 3),
        "nothing": (key < 0) & (row < 0),
        "of heads": (key % 40 == 3 + 20 * head) & (row != 20 * head),
        "one": key == (row // BLOCK * 37 + 5) % keys,
        "few": torch.rand(batch, 1, rows, keys) < 1 / keys,
    }[kind]
    return found.expand(batch, heads, rows, keys)


def looked(
    kind: str, sizes: tuple[int, int, int, int], fill: str = "least",
    change: tuple[str, str] | None = None, **spec: object,
) -> tuple[float, float]:  # fmt: skip
    """Of batch, heads, rows and keys: how often the mask was loaded to find tiles, and how often
    its tiles of a row's own keys alone make it; AssertionError where a flag is wrong."""
    torch.manual_seed(0)
    own = AttentionSpec("float32", 16, 16, program=ADDED, **spec)
    tile = AttentionTile(BLOCK, BLOCK, 4, 1)
    kernel = build_attention(own, tile)
    module = (mutant(kernel, change) if change else kernel).module
    kept = keeps(kind, *sizes)
    # Beside what is added a score may be low by itself, and not be hidden.
    mask = torch.randn(sizes).masked_fill(~kept, LOWEST[fill])
    given = Sizes(*sizes)
    parts = input_parts(own.inputs, [mask], given)
    tiles = KeptTiles(own, "cpu", [mask], parts, None, given)
    blocks = patch.dict(module.FLOORS_CONSTANTS, BLOCK_N=BLOCK)
    with looking_through_masks(), blocks, loads_of(mask=mask) as counts:
        found, _ = tiles.of(module, tile)
    assert found is not None
    seen = mask
    if own.after is not None:
        row, key = torch.arange(sizes[2])[:, None], torch.arange(sizes[3])
        seen = mask.masked_fill(key > row + own.after, -math.inf)
    needed = (seen > -1e9) | ((seen > -math.inf) & ~(seen > -0.5e9).any(-1, keepdim=True))
    short = (0, -sizes[3] % BLOCK, 0, -sizes[2] % BLOCK)
    padded = torch.nn.functional.pad(needed, short)
    wanted = padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).any(-1).any(3)
    assert torch.equal(found.bool(), wanted), "flags"
    return counts["mask"] / mask.numel(), BLOCK / sizes[3]
