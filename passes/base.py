"""What a pass is, what it may ask of the compilation it is part of, and how passes are run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from torch import Tensor, fx
from torch._inductor import config as inductor_config

from overlapc.graphs.attention.reading.versions import Outer
from overlapc.graphs.canonical import fingerprint, text
from overlapc.graphs.collectives import group_of, kind_of
from overlapc.graphs.origins import where
from overlapc.graphs.values import tensor_facts
from overlapc.options import Options
from overlapc.planning.attention.problem import AttentionProblem
from overlapc.planning.linear.regions import LinearProblem
from overlapc.planning.target import Target
from overlapc.reporting.dumps import GraphDump
from overlapc.reporting.records import Site
from overlapc.runtime.attention.softmax_tables import NOT_CALIBRATED, Calibration
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.tables import choices
from overlapc.runtime.programs.settings import settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A linear layer as calibration measures it."""

    problem: LinearProblem
    spec: LayerSpec
    operands: Sequence[Tensor]
    """Like those of its op, without content, at the row count of the graph."""


@dataclass
class Compilation:
    """One graph of one model: what passes may know of it, and where they leave what they did."""

    options: Options
    graph_kind: str
    """"forward", "backward" or "inference"."""
    target_for: Callable[[str, str], Target]
    """(device type, name of the process group) -> the machine to plan for."""
    graph_id: str = ""
    """Hash of the graph before the first pass; sites are numbered under it."""
    sites: list[Site] = field(default_factory=list)
    explains: bool = False
    """Nothing is built: there is time to say more of each site."""
    taken: set[fx.Node] = field(default_factory=set)
    """Collectives whose site an earlier pass has reported, and that later ones leave alone."""
    notes: dict[fx.Node, str] = field(default_factory=dict)
    """What an earlier pass says of a collective, as one more sentence of its reason."""
    stage: str = ""
    """``records.BEFORE_AUTOGRAD`` there; empty for the graphs that Inductor's passes are given."""
    is_checkpointed: bool = False
    """The graph is the body of an activation checkpoint, or stands in one."""
    layers: dict[str, Layer] = field(default_factory=dict)
    """Linear layers that were read, by the site's identifier."""
    varying: list[Layer] = field(default_factory=list)
    """Those of the same GEMMs where the row count is not known; empty where nothing explains."""
    attentions: dict[str, AttentionProblem] = field(default_factory=dict)
    """Attentions that a kernel of our own could compute, by the site's identifier."""
    outer: Outer = field(default_factory=dict)
    """Of a body, what it is given by the graph that calls it, before autograd."""
    weights: dict[fx.Node, Tensor] = field(default_factory=dict)
    """What inputs of the graph hold while it is compiled, as far as they are parameters."""
    calibration: Calibration = NOT_CALIBRATED
    """What prompts said of the attentions of the program that the graph is, or is a part of."""
    places: dict[fx.Node, int] = field(default_factory=dict)
    """By the node of each of these, its place among them, where anything was said."""
    names: Counter[str] = field(default_factory=Counter)
    """How many graphs of a program have each name: bodies of checkpoints around equal layers have
    one text."""
    modules: dict[str, str] = field(default_factory=dict)
    """Text of the Triton module that is generated for a site, by the site's identifier."""

    def named(self, name: str) -> str:
        """Return a name that no other graph of the program has."""
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}-{self.names[name]}"

    def note(self, start: fx.Node, sentence: str) -> None:
        """Let a collective's site say one more sentence."""
        before = self.notes.get(start)
        self.notes[start] = f"{before} {sentence}" if before else sentence

    def noted(self, start: fx.Node, reason: str) -> str:
        """Return a reason with what earlier passes say of the collective behind it."""
        return f"{reason} {self.notes[start]}" if start in self.notes else reason

    def is_disabled(self, name: str) -> bool:
        """Return whether the options leave out the pass of that name."""
        return bool(self.why_disabled(name))

    def why_disabled(self, name: str) -> str:
        """Return why the pass of that name is left out, as a sentence; empty if it is not."""
        for word in (name, "all"):
            if word in self.options.disable:
                return f"Option disable leaves out {word}."
        given = {key.replace("-", "_"): value for key, value in self.options.inductor.items()}
        if given.get("cpp_wrapper", inductor_config.cpp_wrapper):
            return "Inductor's cpp_wrapper cannot write the text that ops carry into C++."
        return ""

    @cached_property
    def choices(self) -> str:
        """What ops carry of the options, for the members of a group to compare."""
        return choices(self.options.digest(), self.options.linear, self.options.softmax)

    @cached_property
    def settings(self) -> str:
        """What is set of Inductor's configuration for the graph, which ops carry too."""
        return settings()

    def next_site_id(self) -> str:
        """Return the identifier of the next site: equal on every rank and in every run."""
        return f"{self.graph_id}.{len(self.sites)}"


def add_site(
    compilation: Compilation, start: fx.Node, decision: str, code: str, reason: str
) -> None:
    """Report a collective that needs no plan, before it is touched."""
    (source, *_) = start.all_input_nodes
    facts = tensor_facts(source)
    sizes = "x".join(str(size) for size in facts.shape) if facts else ""
    site = Site(
        id=compilation.next_site_id(),
        kind=kind_of(start),
        decision=decision,
        reason=compilation.noted(start, reason),
        code=code,
        graph=compilation.graph_kind,
        where=where(start),
        group=group_of(start),
        shape=f"{'' if facts.static else '~'}{sizes} {facts.dtype}" if facts else "",
    )
    log.info("%s %s at %s: %s", site.decision, site.kind, site.where, site.reason)
    compilation.sites.append(site)


class Pass(Protocol):
    """Valid graph in, valid graph out, same values; every site it decided on is in ``sites``.

    A pass that the options disable changes nothing. Those of collectives decide on nothing then, so
    that later ones do; ``overlap_chains``, which is asked about whatever is left, reports it as
    refused. Those of attention and linear layers report what they would have rewritten so.
    """

    @property
    def name(self) -> str:
        """What option ``disable`` calls it; also the label of its dump."""
        ...

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Rewrite ``graph`` in place and append the sites to ``compilation``."""
        ...


class Fuel:
    """How many rewrites this process may still make, to bisect a wrong result."""

    spent = 0

    @classmethod
    def take(cls, options: Options) -> bool:
        """Use one unit; False when ``options.fuel`` units are used up."""
        if 0 <= options.fuel <= cls.spent:
            return False
        cls.spent += 1
        return True


def run_passes(passes: Sequence[Pass], graph: fx.Graph, compilation: Compilation) -> None:
    """Run ``passes`` in order over one graph, and dump it before the first and after each."""
    # With other options the same graph is another compilation, whose calls count by themselves.
    choice = compilation.options.digest()[:6]
    name = f"{compilation.graph_kind}-{fingerprint(graph)}-{choice}"
    compilation.graph_id = compilation.named(f"{compilation.stage}{name}")
    dump = GraphDump(compilation.options.dump)
    dump.graph(compilation.graph_id, "before", lambda: text(graph))
    for one in passes:
        one.apply(graph, compilation)
        dump.graph(compilation.graph_id, one.name, lambda: text(graph))
    dump.sites(compilation.graph_id, compilation.sites, compilation.modules)
    graph.lint()
