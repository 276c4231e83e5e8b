"""Softmax attention becomes torch's fused one, where that pays, or our own op.

It runs over what Dynamo gives, before autograd: gradients come from the kernel that is put in.

Contract. Of finite operands the same values but for rounding; a result whose strides are read keeps
them; a row that keeps no key gives what it gave: NaN under minus infinity, the mean of all values
under a finite mask. Attention that is kept or refused leaves the graph as it was.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.errors import TargetError
from overlapc.graphs.attention.finding import find_sites
from overlapc.graphs.attention.modules import find_modules, spell_out
from overlapc.graphs.attention.placing import Lengths, place, spec_of, text_of
from overlapc.graphs.attention.problems import problem_of
from overlapc.graphs.attention.reading.floats import settle
from overlapc.graphs.attention.rewriting import fuse, take_heads_once
from overlapc.graphs.attention.site import Attention, Fused
from overlapc.graphs.autocast import left_alone
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.faults import all_or_nothing, fault_at
from overlapc.graphs.origins import where
from overlapc.graphs.values import hint_of
from overlapc.passes.base import Compilation, Fuel
from overlapc.planning.attention.choice import decide_on_gpu
from overlapc.planning.attention.decision import decide
from overlapc.planning.attention.problem import AttentionProblem, Verdict
from overlapc.planning.attention.softmax import SiteScores
from overlapc.reporting.records import Site
from overlapc.runtime.attention.masks import AttentionSpec
from overlapc.runtime.attention.op import counter_of, phi_on
from overlapc.runtime.attention.running_phi import running_phi
from overlapc.runtime.attention.tables import attention_table

log = logging.getLogger(__name__)

# torch raises on random ops there, and counts its fused attention as one whatever its dropout.
CHECKPOINTED = Verdict(
    "refused",
    "checkpointed",
    "It stands in a checkpoint of a graph that computes no gradient, where torch allows no fused "
    "attention: without the checkpoint, which saves nothing there, it is read.",
)
OFF = "Option softmax is 'off'."
NO_FUEL = Verdict("kept", "fuel", "The fuel that option 'fuel' gives is used up.")


@dataclass(frozen=True)
class RewriteAttention:
    """Reports every softmax attention of a Dynamo graph, and fuses those that it pays to fuse."""

    name: str = "rewrite_attention"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Match all, decide, then rewrite from the last to the first: operands stand before."""
        decided = _spell_out_modules(graph, compilation)
        chosen = []
        assumed: set[fx.Node] = set()
        for node, found in list(find_sites(graph, compilation.outer, assumed)):
            judged = decided.get(node) or _judged(node, found, compilation, sees=True)
            site = _report(node, judged, compilation)
            if judged.problem is not None and not judged.problem.why_only_torch:
                compilation.attentions[site] = judged.problem
            if judged.verdict.decision == "rewritten" and not isinstance(judged.found, Refusal):
                chosen.append((judged.found, judged.verdict, site))
        known: Lengths = {}
        if chosen:
            settle(assumed)
        for found, verdict, site in reversed(chosen):
            lengths = dict(known)
            try:
                with all_or_nothing(graph):  # nobody reads what was put in: that comes last
                    _rewrite(graph, found, verdict, site, lengths, explains=compilation.explains)
            except Exception as error:
                _correct(compilation.sites, site, fault_at(found.node, error))
            else:
                known = lengths


def _rewrite(
    graph: fx.Graph,
    found: Attention | Fused,
    verdict: Verdict,
    site: str,
    known: Lengths,
    *,
    explains: bool,
) -> None:
    own = found.spelled if isinstance(found, Fused) else found
    if verdict.policy and isinstance(own, Attention):
        if verdict.reads_latent and own.latent is not None:
            own = own.latent
        spec = spec_of(own, verdict.policy, verdict.phi)
        spec = replace(spec, tile=verdict.tile, rounds=verdict.rounds)
        if not explains:
            _make_memory(site, spec, verdict, own.query.value)
        with left_alone(graph, found.node):
            place(
                graph, own, spec, site, known, verdict.of_heads, reads_narrow=verdict.reads_narrow
            )  # fmt: skip
    elif isinstance(found, Fused):
        take_heads_once(graph, found)
    else:
        with left_alone(graph, found.node):
            fuse(graph, found.for_torch)


def _correct(sites: list[Site], own: str, fault: Refusal) -> None:
    """Let a site that was to be rewritten say why it was not."""
    (index,) = (index for index, site in enumerate(sites) if site.id == own)
    sites[index] = replace(sites[index], decision="refused", reason=fault.reason, code=fault.code)


def _make_memory(site: str, spec: AttentionSpec, verdict: Verdict, query: torch.Tensor) -> None:
    """Make what calls of a site share: what a first call makes may be memory of a CUDA graph."""
    counter_of(site, query.device)
    if verdict.of_heads:
        phi_on(verdict.of_heads, query.device)
    if spec.moves_phi:
        running_phi(site, query.device, hint_of(query.shape[1]))


@dataclass(frozen=True)
class Judged:
    """A site, and what is to become of it."""

    found: Attention | Fused | Refusal
    verdict: Verdict
    problem: AttentionProblem | None = None
    """None of a refusal."""


Decided = dict[fx.Node, Judged]
"""By the node of a site, or by the call of a module that stays as it is."""


def _spell_out_modules(graph: fx.Graph, compilation: Compilation) -> Decided:
    """Put the calls of each module in its place whose attention is to be rewritten."""
    decided: Decided = {}
    for call in find_modules(graph):
        spelled = spell_out(graph, call)
        if isinstance(spelled, Refusal):
            decided[call] = _judged(call, spelled, compilation)
            continue
        own = [
            (node, found)
            for node, found in find_sites(graph, compilation.outer)
            if node in spelled.nodes
        ]
        for node, found in own[:1]:
            judged = _judged(node, found, compilation)
            decided[node if judged.verdict.decision == "rewritten" else call] = judged
        if call in decided or not own:
            spelled.restore(graph)
        else:
            spelled.keep(graph)
    return decided


def _judged(
    node: fx.Node,
    found: Attention | Fused | Refusal,
    compilation: Compilation,
    *,
    sees: bool = False,
) -> Judged:
    """Decide on a site, with ``sees`` by what prompts said of it; a fault of ours refuses it."""
    try:
        seen = _seen(node, found, compilation) if sees else ""
        verdict = _verdict(found, compilation, seen)
        return Judged(found, verdict, None if isinstance(found, Refusal) else problem_of(found))
    except Exception as error:  # nothing is changed: the program is compiled without us
        fault = fault_at(node, error)
        return Judged(fault, _verdict(fault, compilation))


def _seen(
    node: fx.Node, found: Attention | Fused | Refusal, compilation: Compilation
) -> SiteScores | str:
    """What prompts said of a site, or why that is of no use; empty: nothing."""
    own = found.spelled if isinstance(found, Fused) else found
    if not isinstance(own, Attention):
        return ""
    known, places = compilation.calibration, compilation.places
    if not known.sites:
        return known.problem
    return known.site(places[node], len(places), text_of(own)) if node in places else ""


def _verdict(
    found: Attention | Fused | Refusal, compilation: Compilation, seen: SiteScores | str = ""
) -> Verdict:
    """Decide on a site, by what prompts said of it as well, or why that is of no use.

    Where the pass is left out, what would be rewritten is refused; with softmax="off", by "auto".
    """
    if isinstance(found, Refusal):
        return Verdict("refused", found.code, found.reason)
    if compilation.is_checkpointed and compilation.graph_kind == "inference":
        return CHECKPOINTED
    problem = problem_of(found, compilation.weights)
    if not isinstance(seen, str):
        problem = replace(problem, prompts=seen)
    choice = compilation.options.softmax
    verdict = _decided(problem, "auto" if choice == "off" else choice)
    if verdict.decision == "rewritten":
        if why := _why_left_out(compilation):
            return Verdict("refused", "disabled", why)
        if not Fuel.take(compilation.options):
            return NO_FUEL
    if isinstance(seen, str) and seen and verdict.policy:
        return replace(verdict, reason=f"{verdict.reason} {seen}")
    return verdict


def _why_left_out(compilation: Compilation) -> str:
    """Why what would be rewritten is left as it is, as a sentence; empty if it is not."""
    is_off = compilation.options.softmax == "off"
    return OFF if is_off else compilation.why_disabled(RewriteAttention.name)


def _decided(problem: AttentionProblem, choice: str) -> Verdict:
    if choice != "auto" or problem.device != "cuda":
        return decide(problem, choice)
    try:
        table = attention_table(problem.device)
    except TargetError as error:
        log.warning("attentions are chosen by prediction: %s", error)
        table = None
    return decide_on_gpu(problem, table)


def _shape(problem: AttentionProblem, verdict: Verdict) -> str:
    return (problem.own if verdict.reads_latent else problem).text()


def _report(node: fx.Node, judged: Judged, compilation: Compilation) -> str:
    """Report a site; return its identifier."""
    verdict, problem = judged.verdict, judged.problem
    site = Site(
        id=compilation.next_site_id(),
        kind="attention",
        decision=verdict.decision,
        reason=verdict.reason,
        code=verdict.code,
        graph=compilation.graph_kind,
        where=where(node),
        shape="" if problem is None else _shape(problem, verdict),
    )
    log.info("%s %s at %s: %s", site.decision, site.kind, site.where, site.reason)
    compilation.sites.append(site)
    return site.id
