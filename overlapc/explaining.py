"""``overlapc.explain``: what the backend would do with a model, without building anything."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch._dynamo.config as dynamo_config
import torch._functorch.config as functorch_config
from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._subclasses.fake_tensor import unset_fake_temporarily

from overlapc import options as user_options
from overlapc.backend import inductor_patches
from overlapc.dynamo import rewrite_before_autograd
from overlapc.graphs.bodies import subgraphs
from overlapc.graphs.origins import graph_kind
from overlapc.ledger import report
from overlapc.options import Options
from overlapc.passes import PIPELINE, check_disabled
from overlapc.passes.base import Compilation, Fuel, run_passes
from overlapc.reporting.report import Report
from overlapc.runtime.ops import uncounted
from overlapc.targets import TargetChoice

__all__ = ["explain", "report"]


def explain(
    model: Callable[..., Any],
    options: Mapping[str, Any] | None = None,
    *,
    dynamic: bool | None = None,
) -> Callable[..., Report]:
    """Return a function of the model's inputs that reports every site of forward and backward.

    ``dynamic`` is ``torch.compile``'s. The same passes run as in a compilation, with the same
    options, but nothing is built and no cache is touched. The model runs once without optimisation
    on the inputs given, so every rank of a real group has to take part; on meta tensors nothing is
    computed. A backward graph is reported where gradients are needed.
    """
    compilations = compilations_of(model, options, dynamic=dynamic)

    def run(*args: Any, **kwargs: Any) -> Report:
        return Report([site for one in compilations(*args, **kwargs) for site in one.sites])

    return run


def compilations_of(
    model: Callable[..., Any],
    options: Mapping[str, Any] | None = None,
    *,
    dynamic: bool | None = None,
) -> Callable[..., list[Compilation]]:
    """Return a function of the model's inputs that gives all that `explain` finds out."""
    chosen = user_options.from_user(options)
    check_disabled(chosen)
    if chosen.target != "auto":
        TargetChoice(chosen.target).all()  # what cannot be read is an error, not a refused site

    def run(*args: Any, **kwargs: Any) -> list[Compilation]:
        found: list[Compilation] = []

        def explaining(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            patches = {**inductor_patches(chosen, None), "force_disable_caches": True}
            if any(isinstance(v, torch.Tensor) and v.is_meta for v in inputs):
                # Folding takes what a graph returns on the meta device for computed by nothing.
                patches["joint_graph_constant_folding"] = False
            before = len(found)
            found.extend(rewrite_before_autograd(graph_module, chosen, inputs, explains=True))
            stub = _stub(chosen, found)
            try:
                compiled = compile_fx(graph_module, list(inputs), stub, config_patches=patches)
            except Exception:  # Dynamo may come again with another graph in place of this one
                del found[before:]
                raise
            return cast("Callable[..., Any]", compiled)

        original = getattr(model, "_orig_mod", model)
        with _explaining():
            torch.compile(original, backend=explaining, dynamic=dynamic)(*args, **kwargs)
        return found

    return run


@contextmanager
def _explaining() -> Iterator[None]:
    """Settings under which every graph comes to our stub, and nothing of it stays."""
    spent = Fuel.spent
    with (
        # The cache must not answer, and the backward must not wait for a call of backward().
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        # Each explanation adds an entry to Dynamo's cache, and past the limit nothing would come.
        dynamo_config.patch(recompile_limit=sys.maxsize, accumulated_recompile_limit=sys.maxsize),
        uncounted(),  # tensors that are real are computed with, by torch
    ):
        try:
            yield
        finally:
            Fuel.spent = spent


def _stub(options: Options, found: list[Compilation]) -> Callable[..., Any]:
    """Return a stand-in for Inductor's inner compiler that runs our passes and builds nothing."""
    targets = TargetChoice(options.target)

    def inner(graph_module: fx.GraphModule, inputs: Sequence[Any], **context: Any) -> Any:
        runnable = _copy_of(graph_module)
        view_to_reshape(graph_module)
        graph_module.graph.eliminate_dead_code()
        kind = graph_kind()
        for graph in (*subgraphs(graph_module.graph), graph_module.graph):
            compilation = Compilation(options, kind, targets.target_for, explains=True)
            run_passes(PIPELINE, graph, compilation)
            found.append(compilation)
        return make_boxed_func(runnable)

    return inner


def _copy_of(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph with its bodies, of which the constants are the same tensors: nothing writes to
    them, and frozen weights are many, and cannot be copied where oneDNN has packed them."""
    shared = {id(tensor): tensor for tensor in graph_module.buffers()}
    with unset_fake_temporarily():  # other constants are real, and are copied as such
        return copy.deepcopy(graph_module, cast("dict[int, Any]", shared))
