"""Chains over an EMULATED link beside what FlashOverlap publishes on such ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.claims import good, middle
from benchmarks.gpu.gemm.flashoverlap import alike

RATIO = "compute to communication"
IDEAL = "longer of torch.mm and collective, over signaled"
OURS, THEIRS = "signaled over serial", "their mean"
ABOVE, BELOW = "above their mean", "below their mean"
NONE_ALIKE = "nothing published on such ratios"


def compared(overlap: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every row that was measured with a kernel that signals."""
    return [beside(row) for row in good(overlap) if OURS in row and RATIO in row]


def beside(row: Mapping[str, Any]) -> dict[str, Any]:
    """Our speed-up over serial and the means of theirs, of the same collective on ratios of compute
    to communication that include this one; or of the nearest, which are named."""
    ours, ratio = middle(row[OURS]), row[RATIO]
    found = {
        "row": f"{row['row']}, {row['EMULATED link']}", RATIO: ratio, OURS: row[OURS],
        IDEAL: row[IDEAL],
    }  # fmt: skip
    means = alike(row["collective"], ratio)
    if not means:
        return {**found, "verdict": NONE_ALIKE}
    theirs = statistics.fmean(mean.flashoverlap.mean for mean in means)
    return {
        **found,
        THEIRS: theirs,
        "theirs": f"{min(mean.flashoverlap.least for mean in means):.3g} to "
        f"{max(mean.flashoverlap.most for mean in means):.3g}",
        "over their mean": ours / theirs,
        "verdict": ABOVE if ours > theirs else BELOW,
        "published of": "; ".join(map(str, means)),
    }
