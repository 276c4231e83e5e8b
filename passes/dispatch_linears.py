"""Linear layers of few rows become one op that chooses by the row count what computes them.

Contract. Same values but for the order of sums; the library computes what it computed before. A
site is rewritten where a measurement of this machine says that something beats the library at a
row count that the graph may be called with, or where option ``linear`` asks for it; every other
leaves the graph as it was. Without a measurement there are no sites.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx
from torch._inductor import config as inductor_config

from overlapc.codegen.linear.spec import MOST_RESULTS
from overlapc.errors import KernelError, TargetError
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.faults import all_or_nothing, fault_at, unless_faulty
from overlapc.graphs.linear.counters import give_counters
from overlapc.graphs.linear.joint import join, may_join
from overlapc.graphs.linear.layers import Linear, Takes, linear_gemms, read_linear
from overlapc.graphs.linear.normed import with_norm
from overlapc.graphs.linear.unread import parameters_of, unread
from overlapc.graphs.origins import where
from overlapc.graphs.replacing import replace_linear
from overlapc.graphs.values import tensor_facts
from overlapc.passes.base import Compilation, Fuel, Layer
from overlapc.planning.linear.prediction import predict, spans
from overlapc.planning.linear.regions import FORCED, LIBRARY, LinearProblem, Regions
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.reasons import no_op_where_rows_vary
from overlapc.planning.target import Target
from overlapc.reporting.records import Site
from overlapc.runtime.linear import op as linear  # registers torch.ops.overlapc.linear
from overlapc.runtime.linear.kernels import lowered_layer
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.tables import table_for

log = logging.getLogger(__name__)

LEFT = Regions()
"""To the library, at every row count."""
DTYPES = ("float32", "bfloat16", "float16")
UNREAD = "products that are not read as linear layers are not told of"
NOT_VARIED = "linear layers are not measured where row counts vary"
TUNES = ("max_autotune", "max_autotune_gemm", "freezing")
"""Configurations in which Inductor computes GEMMs by what tables were not measured against."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a linear layer, and why."""

    decision: str
    code: str
    reason: str
    regions: Regions = LEFT


@dataclass(frozen=True)
class DispatchLinears:
    """Gives every linear layer to what was measured to compute its rows fastest."""

    name: str = "dispatch_linears"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Match, decide and rewrite each layer that no collective has taken, in program order."""
        choice = compilation.options.linear
        if choice == "off":
            return
        tables: dict[str, LinearTable | str | None] = {}
        taken: set[fx.Node] = set()
        ops: list[fx.Node] = []
        products = unless_faulty(lambda: list(unread(graph, parameters_of(graph))), [], UNREAD)
        left = {one.node: one for one in products}
        gemms = [gemm for gemm in linear_gemms(graph) if gemm not in left]
        if compilation.explains:
            name = compilation.graph_id
            varying = unless_faulty(lambda: list(where_rows_vary(gemms, name)), [], NOT_VARIED)
            compilation.varying += varying
        for gemm in sorted((*gemms, *left)):
            device = _device(gemm)
            if gemm in taken or device is None:
                continue
            if device not in tables:
                tables[device] = _table(device) if choice == "auto" else ""
            table = tables[device]
            if table is None:
                continue
            target = _target(compilation, device)
            if gemm in left:
                found, verdict = left[gemm], decide(left[gemm], table, choice, target)
            else:
                later = [one for one in gemms if gemm < one and one not in taken]
                found, verdict = judge(gemm, table, choice, takes, later, target)
            if not isinstance(found, Refusal):
                taken |= {one.node for one in found.gemms}
            ops += self._settle(graph, gemm, found, verdict, compilation)
        give_counters(graph, ops)

    def _settle(
        self,
        graph: fx.Graph,
        gemm: fx.Node,
        found: Linear | Refusal,
        verdict: Verdict,
        compilation: Compilation,
    ) -> list[fx.Node]:
        """Report a layer, and rewrite it where that was decided: the op, if so."""
        if verdict.decision == "rewritten":
            verdict = self._allowed(verdict, compilation)
        site, at, shape, ops = compilation.next_site_id(), where(gemm), "", []
        try:
            if not isinstance(found, Refusal):
                shape = problem_of(found).text(_rows(found))
                spec = LayerSpec(found.program, verdict.regions, site, compilation.settings)
                layer = Layer(problem_of(found), spec, found.meta_operands)
                if verdict.decision == "rewritten":
                    with all_or_nothing(graph):
                        ops = [replace_linear(graph, found, spec.text())]
                compilation.layers[site] = layer
        except Exception as error:
            fault = fault_at(gemm, error)
            verdict = Verdict("refused", fault.code, fault.reason)
        reported = Site(
            id=site,
            kind=linear.NAME,
            decision=verdict.decision,
            reason=verdict.reason,
            code=verdict.code,
            graph=compilation.graph_kind,
            where=at,
            shape=shape,
        )
        log.info("%s %s at %s: %s", verdict.decision, reported.kind, at, verdict.reason)
        compilation.sites.append(reported)
        return ops

    def _allowed(self, verdict: Verdict, compilation: Compilation) -> Verdict:
        """What becomes of a layer that would be rewritten, were the pass not left out."""
        if why := compilation.why_disabled(self.name):
            return Verdict("refused", "disabled", why)
        if not Fuel.take(compilation.options):
            return Verdict("kept", "fuel", "The fuel that option 'fuel' gives is used up.")
        return verdict


def judge(
    gemm: fx.Node,
    table: LinearTable | str,
    choice: str,
    fits: Takes,
    later: Sequence[fx.Node] = (),
    target: Target | None = None,
) -> tuple[Linear | Refusal, Verdict]:
    """Read the layer that begins with a GEMM, as far as it fits into one op, with those of the same
    rows among ``later`` GEMMs that one launch computes beside it, and decide on it."""
    try:
        found = read_linear(gemm, fits)
        if isinstance(found, Linear):
            found = with_norm_before(with_others(found, later, fits), fits)
        return found, decide(found, table, choice, target)
    except KernelError as error:  # of how its weight is scaled
        return Refusal(gemm, "weight", error.what), Verdict("refused", "weight", error.what)
    except Exception as error:  # nothing is changed yet: the program is compiled without us
        fault = fault_at(gemm, error)
        return fault, Verdict("refused", fault.code, fault.reason)


def where_rows_vary(gemms: Sequence[fx.Node], name: str) -> Iterator[Layer]:
    """Yield the layers of a graph's GEMMs as they are read where the row count is not known.

    They are other problems than the same layers with what else one op takes where it is, and a
    model whose row count changes is compiled for both. ``name`` stands for a site.
    """
    taken: set[fx.Node] = set()
    for index, gemm in enumerate(gemms):
        if gemm in taken:
            continue
        later = [one for one in gemms[index + 1 :] if one not in taken]
        found, verdict = judge(gemm, "", "flat", takes_where_rows_vary, later)
        if not isinstance(found, Refusal) and verdict.decision == "rewritten":
            taken |= {one.node for one in found.gemms}
            spec = LayerSpec(found.program, verdict.regions, name)
            yield Layer(problem_of(found), spec, found.meta_operands)


def takes(layer: Linear) -> bool | None:
    """Whether what follows a GEMM may go into its op: only a generated kernel gains by it."""
    if not layer.is_static:
        return takes_where_rows_vary(layer)
    return may_fuse(layer) and is_lowered(layer)


def takes_where_rows_vary(layer: Linear) -> bool | None:
    """Whether it may where the library computes some row counts: where GEMMs alone read the result.

    Inductor would fuse anything else that reads it, with what is in the op, in one kernel, and with
    a norm before what reads that.
    """
    if not may_fuse(layer) or layer.before or not is_lowered(layer):
        return False
    return True if layer.feeds_products else None


def may_fuse(layer: Linear) -> bool:
    """Whether more than one GEMM of a layer may be worth one op: a launch is one of a device."""
    return layer.gemms[0].device != "cpu"


def is_lowered(layer: Linear) -> bool:
    """Whether one kernel computes all of it."""
    try:
        lowered_layer(layer.program, layer.meta_operands)
    except KernelError:
        return False
    return True


def with_others(layer: Linear, later: Sequence[fx.Node], fits: Takes) -> Linear:
    """Return a layer joined with as many of later GEMMs as one launch computes alike."""
    for gemm in later if may_fuse(layer) and len(layer.gemms) == 1 else ():
        if len(layer.results) == MOST_RESULTS:
            break
        if not may_join(layer, gemm):
            continue
        other = read_linear(gemm, fits)
        if isinstance(other, Refusal) or _kind(other) != _kind(layer):
            continue
        joint = join(layer, other)
        if joint is not None and is_lowered(joint):
            layer = joint
    return layer


def with_norm_before(layer: Linear, fits: Takes) -> Linear:
    """Return a layer with the norm of its rows, where that fits into one op."""
    normed = with_norm(layer) if may_fuse(layer) else None
    return normed if normed is not None and fits(normed) else layer


def _kind(layer: Linear) -> tuple[object, ...]:
    """What layers of one launch have in common beside their rows."""
    (gemm, *more) = layer.gemms
    own = more if len(layer.results) == 1 else ()
    return gemm.dtype, layer.layout, layer.held, layer.after, len(own)


def decide(
    found: Linear | Refusal, table: LinearTable | str, choice: str, target: Target | None
) -> Verdict:
    """Choose from what was read and the table; a text is why there is no table to go by. What the
    target predicts is only told."""
    if isinstance(found, Refusal):
        return Verdict("refused", found.code, found.reason)
    problem = problem_of(found)
    if problem.dtype not in DTYPES:
        reason = f"Linear layers of {problem.dtype} are not taken, only of {', '.join(DTYPES)}."
        return Verdict("refused", "dtype", reason)
    if problem.layout == "strided":
        return Verdict("refused", "strided_weight", "Its weight has no unit stride.")
    if choice != "auto":
        reason = "Option linear asks for what is generated wherever it may run."
        return Verdict("rewritten", "forced", reason, FORCED)
    if isinstance(table, str):
        return Verdict("kept", "no_table", table)
    entry = table.entry(problem)
    rows = found.gemms[0].m
    if entry is None:
        return _not_measured(found, problem, target)
    regions = entry.regions_of(in_graphs=bool(inductor_config.triton.cudagraphs))
    if _leaves(regions, found):
        at = f"at {rows} rows" if not regions.is_empty else "at any row count"
        reason = f"Nothing was measured to beat the library {at}"
        if not _leaves(entry.regions, found):
            reason += " where a host launches each call; in CUDA graphs something did"
        return Verdict("kept", "library", f"{reason}.")
    if tuned := [name for name in TUNES if getattr(inductor_config, name)]:
        reason = f"It was measured against Inductor without {' and '.join(tuned)}, and won then."
        return Verdict("kept", "autotuned", reason)
    calls_library = not found.is_static and found.gemms[0].device == "cpu"
    if calls_library and (why := no_op_where_rows_vary(entry)):
        return Verdict("kept", why.code, why.text)
    return Verdict("rewritten", "measured", f"Measured here: {regions}.", regions)


def _leaves(regions: Regions, layer: Linear) -> bool:
    """Whether the library computes a layer at every row count with which it may be called."""
    (gemm, *_) = layer.gemms
    return regions.is_empty or (layer.is_static and regions.implementation(gemm.m) == LIBRARY)


def _not_measured(layer: Linear, problem: LinearProblem, target: Target | None) -> Verdict:
    """Where a measurement may find that ours wins, and where the model thinks so."""
    (gemm, *_) = layer.gemms
    ours = spans(problem, gemm.device, target)
    if not ours or (layer.is_static and gemm.m > max(most for _, most in ours.values())):
        at = f"{gemm.m} rows" if ours else "any row count"
        reason = f"Nothing but the library can run, or may win, at {at}."
        return Verdict("kept", "many_rows", reason)
    said = " or ".join(f"{way} at {low} to {most} rows" for way, (low, most) in ours.items())
    reason = f"It was not measured on this machine: overlapc calibrate --linear does. {said}"
    reason += " may win."
    if likely := predict(problem, target):
        reason += f" Predicted for {likely.target}, not measured: {likely.regions}."
    return Verdict("kept", "not_measured", reason)


def problem_of(layer: Linear) -> LinearProblem:
    """Return what layers that are computed alike have in common."""
    gemm = layer.gemms[0]
    return LinearProblem(
        gemm.n,
        gemm.k,
        gemm.dtype,
        layer.layout,
        len(layer.gemms) // len(layer.results),
        layer.held,
        " ".join(layer.after),
        tuple(other.n for other in layer.gemms[1:]) if len(layer.results) > 1 else (),
        layer.scaled,
        layer.before,
    )


def _table(device: str) -> LinearTable | str | None:
    try:
        return table_for(device)
    except TargetError as error:
        log.warning("linear layers are left to the library: %s", error)
        return f"{error.what} Remedy: {error.remedy}."


def _device(product: fx.Node) -> str | None:
    """Type of the device of an operand; an op that computes it may give several results."""
    facts = (tensor_facts(node) for node in product.all_input_nodes)
    return next((one.device for one in facts if one), None)


def _target(compilation: Compilation, device: str) -> Target | None:
    """What the model predicts for; None where nothing is known of the device."""
    try:
        return compilation.target_for(device, "")
    except TargetError:
        return None


def _rows(layer: Linear) -> str:
    return f"{'' if layer.is_static else '~'}{layer.gemms[0].m}"
