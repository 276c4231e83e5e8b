"""A softmax attention as one record, whatever calls spell it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.layouts import takes_groups
from overlapc.graphs.attention.masks.combined import Mask
from overlapc.graphs.attention.masks.prefixes import Prefix
from overlapc.graphs.attention.narrow import Narrow
from overlapc.graphs.attention.norms.lengths import Norms
from overlapc.graphs.attention.products.repeats import is_broadcast
from overlapc.graphs.attention.reading.tensors import Expression
from overlapc.graphs.attention.scores.functions import Function
from overlapc.graphs.attention.scores.scales import TensorScale, tensor_scale
from overlapc.graphs.attention.scores.sinks import Sinks
from overlapc.graphs.attention.scores.steps import Step, tensors_of
from overlapc.graphs.collectives import Refusal


@dataclass(frozen=True)
class Attention:
    """``softmax(scale * query @ key^T + mask) @ value``, the heads of key and value repeated."""

    node: fx.Node
    """What gives the result."""
    query: Expression
    """``[batch, groups * heads, rows, dim]``"""
    key: Expression
    """``[batch, heads, keys, dim]``"""
    value: Expression
    """``[batch, heads, keys, value_dim]``"""
    groups: int
    """Heads of ``query`` that share one of ``key``."""
    scale: float
    mask: Mask
    chain: tuple[fx.Node, ...]
    """The calls that the rewrite makes superfluous, in their order."""
    frame: tuple[Any, ...]
    """Leading sizes of scores, as the softmax reads them."""
    batch: tuple[Any, ...]
    """Leading sizes of the result, before ``order``."""
    order: tuple[int, ...]
    """Dimensions of the result in the order of ``node``; empty: as they are."""
    is_contiguous: bool
    """Somebody reads strides of the result: it is to be contiguous before ``order``, or after it
    where ``node`` is."""
    repeated: tuple[Expression, Expression] | None = None
    """Keys and values as the graph repeats their heads; None where it does not."""
    length: Prefix | str = ""
    """What the mask says, where that is which keys of a cache are valid, or why it is not; empty
    where it does not look like it."""
    program: tuple[Step, ...] = ()
    """What is done to scaled scores before ``mask``."""
    sinks: Sinks | None = None
    rounds: bool = False
    """Scores are rounded to the dtype of the values: their product is of that."""
    norms: Norms | str = ""
    """What made rows of queries and keys of a length, or why nothing did."""
    narrow: Narrow | None = None
    """Keys and values in the narrower dtype that they are widened from; None where they are not."""
    latent: Attention | None = None
    """The same as an attention whose keys begin with their values, where they do."""
    is_latent: bool = False
    """It is that one: ``key`` is what of each key follows its value."""
    rest: Expression | None = None
    """What of queries meets ``key`` then, where the graph has it apart from ``query``."""
    unfused: str = ""
    """Why torch has no fused kernel for it, where it is a call of torch's attention; else empty."""

    @property
    def head_dim(self) -> int | torch.SymInt:
        """Columns of whole queries and keys."""
        own = self.query.shape[-1]
        return own if self.rest is None else own + self.rest.shape[-1]

    def made_of(self, steps: tuple[Step, ...]) -> tuple[Expression, ...]:
        """Return all tensors that go into it with these of its steps."""
        beside = (tensor for step in steps for tensor in tensors_of(step))
        sides = (self.query, self.rest, self.key, self.value)
        sinks = (self.sinks.tensor,) if self.sinks else ()
        return (*(side for side in sides if side is not None), *beside, *sinks)

    @property
    def prefix(self) -> Prefix | None:
        """Which keys of a cache are valid, where the mask says that."""
        return self.length if isinstance(self.length, Prefix) else None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All that is done to scaled scores."""
        return (*self.program, *self.mask.parts)

    @property
    def tensor_scale(self) -> TensorScale | None:
        """A tensor by which rows of queries can be multiplied in place of scores; None where more
        is done to scores."""
        return tensor_scale(self.program, self.query)

    @property
    def untold(self) -> Refusal | None:
        """Why torch's attention cannot be told the same; a kernel of our own can.

        With code "sinks" it can be told all the rest."""
        if self.program and self.tensor_scale is None:
            names = ", ".join(s.name for s in self.program if isinstance(s, Function))
            reason = f"Scores go through {names}, which torch's attention cannot do."
            return Refusal(self.node, "score_function", reason)
        if self.sinks is None or self.mask.untold is not None:
            return self.mask.untold
        reason = "A column that is no key takes part in the softmax, not in torch's attention: our "
        reason += "op tells it of sinks on processors, of values as wide as keys and up to 32 bits."
        return Refusal(self.node, "sinks", reason)

    @property
    def is_trained(self) -> bool:
        """A gradient is wanted of queries, keys or values, or of what scores are made of."""
        every = self.made_of(self.program)
        return torch.is_grad_enabled() and any(side.value.requires_grad for side in every)

    @property
    def is_broadcast(self) -> bool:
        """Heads of keys that queries share are repeated by nothing but a broadcast."""
        return self.repeated is not None and is_broadcast(self.repeated[0])

    def cast(self, dtype: torch.dtype) -> Attention:
        """Return it of operands in another dtype, as autocast casts them where they are read."""
        sides = {name: getattr(self, name) for name in ("query", "key", "value", "rest")}
        repeated, latent, norms = self.repeated, self.latent, self.norms
        return replace(
            self,
            **{name: side and side.cast(dtype) for name, side in sides.items()},
            repeated=repeated and (repeated[0].cast(dtype), repeated[1].cast(dtype)),
            norms=norms if isinstance(norms, str) else norms.rounded(dtype),
            latent=latent and latent.cast(dtype),
        )

    @property
    def for_torch(self) -> Attention:
        """The same with heads repeated where no fused kernel of torch's takes them once."""
        if self.repeated is None or takes_groups(self.query, self.mask.says == "given"):
            return self
        key, value = self.repeated
        return replace(self, key=key, value=value, groups=1, repeated=None)


@dataclass(frozen=True)
class Fused:
    """A call of torch's own attention."""

    node: fx.Node
    query: Expression
    key: Expression
    value: Expression
    """With each head once; all three as of ``Attention``."""
    groups: int
    """How often the graph repeats heads that torch's kernel takes once."""
    spelled: Attention | Refusal
    """The same as one that is spelled out, for a kernel of our own, or why it is none."""
    unfused: str = ""
    """Why torch has no fused kernel for it all the same; then ``spelled`` is a refusal."""


Site = Attention | Fused | Refusal
