"""Run a user's prompts through a model, and keep a φ for each head of its attentions."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from torch import fx

from overlapc.calibration import Progress
from overlapc.errors import ProblemError, TargetError
from overlapc.graphs.attention.ordering import sites_in_order
from overlapc.graphs.attention.placing import Lengths, spec_of, text_of
from overlapc.graphs.attention.site import Attention, Fused
from overlapc.graphs.attention.watching import watch
from overlapc.graphs.origins import where
from overlapc.planning.attention.softmax import SiteScores
from overlapc.planning.attention.softmax_table import GraphScores, SoftmaxTable, table_path
from overlapc.runtime.attention.score_watching import SiteRange, Watch
from overlapc.runtime.kernel_attempts import runs_kernels
from overlapc.runtime.weights import content_of, structure_of, weights_in

log = logging.getLogger(__name__)

Batch = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named inputs of one call."""


class Recorder:
    """A backend that runs graphs as they are, and takes in the scores of their attentions."""

    def __init__(self) -> None:
        self.ranges: dict[tuple[str, str], list[SiteRange]] = {}
        """By structure and content of the weights, one for each attention of a graph."""

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one graph of Dynamo's; those of the same weights are the same attentions."""
        sites, weights = sites_in_order(module.graph), weights_in(inputs)
        content = content_of(weights) if weights and sites else ""
        if not content:
            return module.forward
        own = [found.spelled if isinstance(found, Fused) else found for _, found in sites]
        texts = [text_of(one) if isinstance(one, Attention) else "" for one in own]
        fresh = [SiteRange(where(node), text) for (node, _), text in zip(sites, texts, strict=True)]
        known = self.ranges.setdefault((structure_of(weights), content), fresh)
        if [one.attention for one in known] != texts:
            log.warning("a graph with other attentions than the first of its weights is left out")
            return module.forward
        lengths: Lengths = {}
        for index, one in reversed(list(enumerate(own))):
            if texts[index] and isinstance(one, Attention):
                seen = Watch(known[index], spec_of(one, "online"))
                watch(one, seen, f"overlapc_watch_{index}", lengths)
        return module.forward


def calibrate_softmax(
    model: Callable[..., Any],
    batches: Iterable[Batch],
    *,
    save: bool = True,
    progress: Progress | None = None,
) -> list[SoftmaxTable]:
    """Call a model with every batch; what was seen, by the structure of its graphs' weights.

    It is called without gradients, each graph's calls as they stand, on whatever device the model
    is. With ``save`` tables are stored where compilations with ``softmax="unified"`` look for them;
    what they had of other weights stays. Raises ProblemError where no attention was seen.
    """
    recorder = Recorder()
    compiled = torch.compile(getattr(model, "_orig_mod", model), backend=recorder)
    batches = list(batches)
    # Every recorder adds entries to Dynamo's cache, and past the limit nothing would be seen.
    with (
        torch.no_grad(),
        dynamo_config.patch(recompile_limit=sys.maxsize, accumulated_recompile_limit=sys.maxsize),
    ):
        for index, (args, kwargs) in enumerate(batches):
            if progress:
                progress(f"batch {index + 1} of {len(batches)}", index / len(batches))
            compiled(*args, **kwargs)
    seen: dict[str, SoftmaxTable] = {}
    for (structure, content), ranges in recorder.ranges.items():
        graph = GraphScores(content, tuple(one.summary() for one in ranges))
        if any(site.heads for site in graph.sites):
            table = seen.get(structure, SoftmaxTable(structure))
            seen[structure] = table.with_graph(graph)
    if not seen:
        raise ProblemError(
            "No attention was seen whose scores a kernel could compute.",
            where="overlapc calibrate --softmax",
            remedy="give a model with weights whose attention overlapc explain --option "
            "softmax=unified shows and does not refuse, and at least one batch",
        )
    if save:
        for table in seen.values():
            _keep(table)
    return list(seen.values())


def _keep(table: SoftmaxTable) -> None:
    """Store a table with what was known before, where that can be read."""
    path = table_path(table.structure)
    try:
        known = SoftmaxTable.load(path) if path.exists() else SoftmaxTable(table.structure)
    except TargetError:
        known = SoftmaxTable(table.structure)
    for graph in table.graphs:
        known = known.with_graph(graph)
    known.save(path)


def batches_of(inputs: object) -> list[Batch]:
    """Return the calls that ``inputs`` are for: a tuple of one call's, or a list of such tuples,
    dicts of named inputs, and single tensors. ProblemError for anything else."""
    if isinstance(inputs, tuple):
        return [(inputs, {})]
    what = f"a {type(inputs).__name__}" if not isinstance(inputs, list) else "an empty list"
    if isinstance(inputs, list) and inputs:
        found = [_batch(item) for item in inputs]
        if None not in found:
            return [batch for batch in found if batch is not None]
        place = found.index(None)
        what = f"a list whose item {place} is a {type(inputs[place]).__name__}"
    raise ProblemError(
        f"Batches cannot be read from {what}.",
        where="overlapc calibrate --softmax",
        remedy="give a tuple of inputs, or a list of tuples, dicts or tensors, one for each call",
    )


def _batch(item: object) -> Batch | None:
    match item:
        case torch.Tensor():
            return (item,), {}
        case tuple():
            return item, {}
        case Mapping():
            return (), {str(name): value for name, value in item.items()}
    return None


def takes_phi() -> bool:
    """Return whether a kernel that takes scores relative to a φ runs on this machine."""
    return torch.cuda.is_available() or runs_kernels("cpu")


def describe(site: SiteScores) -> str:
    """Return what was seen of an attention, and of each head, as lines of text."""
    if not site.heads:
        return f"{site.where}: {site.attention or 'not ours to compute'}, nothing was seen"
    lines = [f"{site.where}: {site.attention}; {site.text()}"]
    return "\n".join([*lines, *(f"  head {h:2}: {one.text()}" for h, one in enumerate(site.heads))])
