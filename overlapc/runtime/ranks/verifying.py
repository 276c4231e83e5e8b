"""The op that stands before a collective of torch's own and compares its sizes across the ranks.

It is there under option ``verify`` only: where sizes differ gloo ends the process, or waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx.node import has_side_effect

from overlapc.runtime.ops import choices_text
from overlapc.runtime.ranks import groups
from overlapc.runtime.ranks.comparing import sizes_text, verify

SCHEMA = (
    "verify_sizes(Tensor[] sent, SymInt[] receives, SymInt[] sends, str call, str at, "
    "float seconds, str options, str target, str group) -> Tensor[]"
)
"""``sent`` are the tensors that the collective ``call`` at the line ``at`` is given. ``receives``
and ``sends`` are the rows of an all-to-all from and to each rank, else empty. ``options`` and
``target`` are what the members of the group agree on at its first use. The results are contiguous
copies of what is sent: a collective that reads them cannot come first, whoever moves it."""

_library = torch.library.Library("overlapc", "FRAGMENT")


def _run(
    sent: list[torch.Tensor],
    receives: Sequence[int],
    sends: Sequence[int],
    call: str,
    at: str,
    seconds: float,
    options: str,
    target: str,
    group: str,
) -> list[torch.Tensor]:
    living = groups.resolve(group)
    groups.agree_once(living, choices_text(options, target), seconds)
    # Rows of an all-to-all are told by rank.
    shapes = [("*", *tensor.shape[1:]) if sends else tensor.shape for tensor in sent]
    sizes = [sizes_text(shape, one.dtype) for shape, one in zip(shapes, sent, strict=True)]
    verify(living, call, " and ".join(sizes), receives, sends, seconds, at)
    return _copies(sent)


def _copies(sent: Sequence[torch.Tensor], *_: object) -> list[torch.Tensor]:
    return [tensor.clone(memory_format=torch.contiguous_format) for tensor in sent]


# Only sizes are read, in any layout. A replay of a CUDA graph would compare nothing.
_library.define(SCHEMA, tags=(torch.Tag.flexible_layout, torch.Tag.cudagraph_unsafe))
_library.impl("verify_sizes", _run, "CompositeExplicitAutograd")
torch.library.register_fake("overlapc::verify_sizes", _copies, lib=_library)
OP = torch.ops.overlapc.verify_sizes.default
has_side_effect(OP)
