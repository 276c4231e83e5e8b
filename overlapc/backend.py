"""The function that ``torch.compile(backend="overlapc")`` calls: Inductor with our passes in it."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import custom_graph_pass, list_mode_options
from torch._inductor.compile_fx import compile_fx

from overlapc import direct_calls, ledger
from overlapc import options as user_options
from overlapc.compiled import agreeing
from overlapc.dynamo import rewrite_before_autograd
from overlapc.errors import OptionError
from overlapc.graphs.attention.products.matmuls import SOFTMAX_DIM
from overlapc.graphs.collectives import sent_by
from overlapc.graphs.origins import graph_kind
from overlapc.options import Options
from overlapc.passes import PIPELINE, check_disabled
from overlapc.passes.base import Compilation, run_passes
from overlapc.runtime.linear.tables import fingerprint_of_tables
from overlapc.runtime.plans import keep
from overlapc.runtime.ranks.groups import sizes_of_groups
from overlapc.sources import fingerprint_of_sources
from overlapc.targets import TargetChoice

log = logging.getLogger(__name__)

HOOK = "post_grad_custom_pre_pass"


direct_calls.install()


class PostGradPasses(custom_graph_pass.CustomGraphPass):
    """Our passes as Inductor sees them: one custom pass over each post-grad graph."""

    def __init__(self, options: Options, entry: ledger.Entry) -> None:
        self.options = options
        self.entry = entry
        self.targets = TargetChoice(options.target)

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite one graph and enter its sites in the ledger."""
        compilation = Compilation(self.options, graph_kind(), self.targets.target_for)
        run_passes(PIPELINE, graph, compilation)
        self.entry.add(compilation.graph_id, compilation.sites, sent_by(graph))

    def uuid(self) -> str:
        """Return the key of everything that decides a rewrite, except the rank.

        Of the Dynamo graph too: of two that come down to one post-grad graph the second would find
        the artifact of the first, no pass would run, and its sites would be in no report.
        """
        return f"{uuid_of(self.options, self.targets)} {self.entry.key}"


def uuid_of(options: Options, targets: TargetChoice) -> str:
    """Hash our sources, every option, every target and table in question, all groups' sizes."""
    groups = sorted(sizes_of_groups().items())
    parts = [
        fingerprint_of_sources(),
        options.key(),
        # Dumps are written by passes, and a warm cache runs none.
        options.dump,
        repr(groups),
        repr([target.fingerprint for target in targets.all()]),
        fingerprint_of_tables() if options.linear == "auto" else "",
    ]
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph with Inductor and the passes of overlapc.

    ``options`` are the fields of ``overlapc.Options``; ``mode`` means what it means for Inductor.
    Raises ``OptionError`` and ``TargetError`` for what it cannot accept.
    """
    chosen = user_options.from_user(options)
    check_disabled(chosen)
    targets = TargetChoice(chosen.target)
    for target in targets.all():
        keep(target)  # a warm cache runs no pass, but its ops plan for one of these
    key = ledger.key_of(graph_module, example_inputs, uuid_of(chosen, targets))
    entry = ledger.open_entry(key, chosen, targets)
    ours = PostGradPasses(chosen, entry)
    patches = inductor_patches(chosen, mode)
    patches[HOOK] = _composed(patches.get(HOOK, getattr(inductor_config, HOOK)), ours)
    # Dumps are written by passes, and what fuel is left is no property of a graph.
    if chosen.dump or chosen.fuel >= 0:
        patches["force_disable_caches"] = True
    for before in rewrite_before_autograd(graph_module, chosen, example_inputs):
        entry.add(before.graph_id, before.sites, {})
        if any(site.code == SOFTMAX_DIM for site in before.sites):
            # Inductor's patterns of attention look at no dimension of a softmax (pytorch#196468).
            patches.setdefault("pattern_matcher", False)
    try:
        compiled = compile_fx(graph_module, list(example_inputs), config_patches=patches)
    except Exception:  # Dynamo may come again with another graph in place of this one
        ledger.forget(entry)
        raise
    return agreeing(cast("Callable[..., Any]", compiled), entry)


def inductor_patches(options: Options, mode: str | None) -> dict[str, Any]:
    """Return Inductor's configuration for ``mode`` and ``options.inductor``; names are checked."""
    known = inductor_config.get_config_copy()
    patches = dict(list_mode_options(mode)) if mode else {}
    for name, value in options.inductor.items():
        name = name.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise OptionError(
                f"Inductor has no configuration {name!r}.",
                where="option 'inductor' of backend 'overlapc'",
                remedy=f"did you mean {near[0]!r}?" if near else "see torch._inductor.config",
            )
        patches[name] = value
    return patches


def _composed(existing: Any, ours: PostGradPasses) -> Any:
    if existing is None:
        return ours
    if not hasattr(custom_graph_pass, "get_custom_graph_passes"):  # torch 2.11 takes one only
        raise OptionError(
            f"This torch runs one {HOOK}, and {existing!r} is already configured.",
            where="torch._inductor.config, or option 'inductor' of backend 'overlapc'",
            remedy="remove that pass, or use a torch whose hook takes a list of passes",
        )
    return [*(existing if isinstance(existing, list | tuple) else [existing]), ours]
