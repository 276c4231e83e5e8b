"""Combinations of features in which every pair of values of two features occurs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def all_pairs(features: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return such combinations, few of them: each the best of some random ones at covering pairs
    that no earlier one has."""
    generator = random.Random(seed)
    names = list(features)

    def places(row: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}

    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(features[a]))
        for j in range(len(features[b]))
    }
    found = []
    while missing:
        a, i, b, j = min(missing)
        rows = [
            {name: generator.randrange(len(features[name])) for name in names} | {a: i, b: j}
            for _ in range(50)
        ]
        best = max(rows, key=lambda row: len(places(row) & missing))
        missing -= places(best)
        found.append({name: features[name][best[name]] for name in names})
    return found
