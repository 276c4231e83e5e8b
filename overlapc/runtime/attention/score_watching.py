"""Takes in the scores of an attention while its graph runs, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import ProblemError
from overlapc.planning.attention.softmax import SiteScores
from overlapc.runtime.attention.program import masked_scores
from overlapc.runtime.attention.score_ranges import HeadRange


@dataclass
class SiteRange:
    """One attention of a model, in whatever graphs it is."""

    where: str
    """Module path and source line."""
    attention: str
    """As of ``attention_text``; empty where it is not ours to compute."""
    heads: list[HeadRange] = field(default_factory=list)
    """Of queries; none before the first call."""

    def take(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        lengths: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Take in one call: operands as ``overlapc.attention`` takes them.

        Holds the scores of one head of one sequence at a time.
        """
        if not self.heads:
            self.heads = [HeadRange(spec.dtype) for _ in range(query.shape[1])]
        if len(self.heads) != query.shape[1]:
            raise ProblemError(
                f"An attention has {query.shape[1]} heads, and had {len(self.heads)} before.",
                where=self.where,
                remedy="give batches of one size: this model counts sequences as heads",
            )
        if not key.shape[2]:
            return
        one = replace(spec, groups=1)
        for b in range(query.shape[0]):
            length = None if lengths is None else lengths[b % len(lengths)][None]
            for h, head in enumerate(self.heads):
                g = h // spec.groups
                its = [_of_head(tensor, b, h) for tensor in inputs]
                queries, keys = query[b : b + 1, h : h + 1], key[b : b + 1, g : g + 1]
                sink = None if sinks is None else sinks[h]
                _, scores, seen = masked_scores(one, queries, keys, its, length)
                seen = None if seen is None else seen.reshape(seen.shape[-2:])
                head.add(scores[0, 0], seen, sink)

    def summary(self) -> SiteScores:
        """What is stored of it."""
        heads = tuple(head.summary() for head in self.heads)
        alive = all(head.rows for head in heads)
        return SiteScores(self.where, self.attention, heads if alive else ())


class Watch(torch.nn.Module):
    """Stands in a graph before an attention, and hands what it is given to its range."""

    def __init__(self, range: SiteRange, spec: AttentionSpec) -> None:
        super().__init__()
        self.range, self.spec = range, spec

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        lengths: torch.Tensor | None = None,
        phi: object = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Take in one call: what ``overlapc.attention`` takes, up to its sinks."""
        self.range.take(self.spec, query, key, inputs, lengths, sinks)


def attention_text(spec: AttentionSpec, heads: int) -> str:
    """Return what of an attention φ depends on beside the weights, wherever it runs."""
    return f"{heads} heads of {spec.head_dim} {spec.dtype}, scaled by {spec.scale:g}"


def _of_head(tensor: torch.Tensor, b: int, h: int) -> torch.Tensor:
    """The part of an input of scores that one head of one sequence is given."""
    for dim, at in ((-4, b), (-3, h)):
        if tensor.dim() >= -dim and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, at, 1)
    return tensor
