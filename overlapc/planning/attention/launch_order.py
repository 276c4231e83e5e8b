"""In which order CTAs of an attention of many rows begin: longest first, of few heads at a time.

Rows of a causal attention see few keys or many. Where each head's blocks of rows began one head
after another, long ones of the last heads would begin last, and most multiprocessors would wait for
them. Where those of all heads began by their lengths, keys of all would be read at a time.
"""

from __future__ import annotations

TOGETHER_BYTES = 24 << 20
"""Of keys and values that are read at a time: half of the L2 cache of an H100. Chosen."""


def heads_together(units: int, groups: int, head_bytes: int) -> int:
    """Return how many of ``units`` heads of queries, of all batches, begin their longest blocks
    before others begin any, where ``groups`` of them share one of keys.

    They are whole groups, as many as fit a cache with the keys and values of each, ``head_bytes``,
    and of the last ones not many fewer: else multiprocessors would wait for those.
    """
    heads = -(-units // groups)
    fitting = max(1, TOGETHER_BYTES // max(1, head_bytes))
    times = -(-heads // fitting)
    return groups * -(-heads // times)
