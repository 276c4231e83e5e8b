"""What happens to a graph of Dynamo's before autograd sees it: in a compilation and in explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing as _unsaved

from overlapc.errors import TargetError
from overlapc.graphs.attention.finding import has_attention
from overlapc.graphs.attention.ordering import sites_in_order
from overlapc.graphs.attention.reading.outer import outer_of_bodies
from overlapc.graphs.attention.reading.remembering import Known, remembered
from overlapc.graphs.attention.reading.versions import Outer
from overlapc.graphs.autocast import Autocast, ambient, states_of_bodies, under
from overlapc.graphs.bodies import checkpointed, graphs_with_inputs, parameters_in
from overlapc.graphs.faults import unless_faulty
from overlapc.graphs.values import value_of
from overlapc.options import Options
from overlapc.passes import BEFORE_AUTOGRAD
from overlapc.passes.base import Compilation, run_passes
from overlapc.planning.target import Target
from overlapc.reporting.records import BEFORE_AUTOGRAD as STAGE
from overlapc.runtime.attention.softmax_tables import NOT_CALIBRATED, calibration_of
from overlapc.runtime.planned_devices import planned_device
from overlapc.runtime.weights import weights_in


def rewrite_before_autograd(
    graph_module: fx.GraphModule,
    options: Options,
    inputs: Sequence[Any] = (),
    *,
    explains: bool = False,
) -> Iterator[Compilation]:
    """Run the passes that come before autograd over a graph and the bodies that it calls.

    Rewrites in place; yields a compilation, with its sites, for each graph that was looked at.
    ``inputs`` are those of the graph: by its weights it is known whether prompts calibrated it.
    """
    kind = _kind(graph_module.graph)
    known, places = NOT_CALIBRATED, {}
    constants: Known = {}
    graphs = list(graphs_with_inputs(graph_module.graph, inputs))
    with remembered(constants):
        graphs = [(graph, given) for graph, given in graphs if has_attention(graph)]
    outer = _outer_of_bodies(graph_module.graph) if graphs else {}
    autocast = _states_of_bodies(graph_module.graph) if graphs else {}
    if graphs and _may_take_own(graph_module.graph, options):
        known = calibration_of(weights_in(inputs))
        sites = sites_in_order(graph_module.graph) if known.sites else []
        places = {node: place for place, (node, _) in enumerate(sites)}
    apart = checkpointed(graph_module.graph) if graphs else set()
    names: Counter[str] = Counter()
    for graph, given in graphs:
        compilation = Compilation(
            options, kind, _no_target, explains=explains, stage=STAGE,
            is_checkpointed=graph in apart, names=names,
        )  # fmt: skip
        compilation.outer, compilation.weights = outer.get(graph, {}), parameters_in(given)
        compilation.calibration, compilation.places = known, places
        # A checkpoint around the call that compiles would count what fake tensors save.
        with _unsaved(), remembered(constants), under(autocast.get(graph, ambient())):
            run_passes(BEFORE_AUTOGRAD, graph, compilation)
        if graph.owning_module is not None:
            graph.owning_module.recompile()
        yield compilation


def _may_take_own(graph: fx.Graph, options: Options) -> bool:
    """Whether a kernel of our own may be chosen whose φ prompts can tell."""
    values = [value_of(node) for node in graph.nodes if node.op == "placeholder"]
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    is_on_gpu = any(planned_device(value.device.type) == "cuda" for value in tensors)
    return options.softmax in ("unified", "running") or (options.softmax == "auto" and is_on_gpu)


def _outer_of_bodies(graph: fx.Graph) -> dict[fx.Graph, Outer]:
    what = "bodies are read as if they were given what is not known"
    return unless_faulty(lambda: outer_of_bodies(graph), {}, what)


def _states_of_bodies(graph: fx.Graph) -> dict[fx.Graph, Autocast]:
    what = "bodies are taken to begin under the autocast that their graph begins under"
    return unless_faulty(lambda: states_of_bodies(graph), {}, what)


def _kind(graph: fx.Graph) -> str:
    """Which graph autograd will make of it first."""
    inputs = (value_of(node) for node in graph.nodes if node.op == "placeholder")
    wanted = any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
    return "forward" if wanted and torch.is_grad_enabled() else "inference"


def _no_target(device: str, group: str) -> Target:
    raise TargetError(
        f"Nothing is planned for {device} and group {group!r} before autograd.",
        where="a pass of BEFORE_AUTOGRAD",
        remedy="ask for a target in a pass of PIPELINE",
    )
