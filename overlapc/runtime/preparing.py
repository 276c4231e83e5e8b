"""From the sizes of a call to a chain that is ready to run: checked, planned and agreed on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from overlapc.planning.problem import COLUMNS, TILES
from overlapc.planning.schedule import Plan
from overlapc.planning.signaled import reachable_tiles
from overlapc.planning.tiles import Tile
from overlapc.runtime import checking
from overlapc.runtime.chunked.column_producers import ColumnProducer
from overlapc.runtime.chunked.consumers import Consumer
from overlapc.runtime.chunked.packed import PackedProducer, Reread
from overlapc.runtime.chunked.producers import Empty, Producer
from overlapc.runtime.chunked.whole import whole
from overlapc.runtime.cutting.layout import Dealing, consumer_parts, producer_parts
from overlapc.runtime.cutting.units import ranges
from overlapc.runtime.plans import plan_call, target_of
from overlapc.runtime.programs import program
from overlapc.runtime.ranks import agreement, comparing
from overlapc.runtime.ranks.agreement import Cut
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.shapes import on_meta, packed_order, values
from overlapc.runtime.signaled.schedule import Signaled
from overlapc.runtime.sizing import column_operands
from overlapc.runtime.spec import ChainSpec

Operands = Sequence[torch.Tensor]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Rests:
    """The program's tensors without dimension 0, which is the units."""

    moved: Empty
    """What a producer sends, or what a consumer is given to send."""
    kept: tuple[Empty, ...]


@dataclass(frozen=True)
class Ready:
    """A chain for operands of known sizes."""

    schedule: str
    deal: Dealing
    text: str
    """Sizes that the ranks have to agree on."""
    run: Callable[[Operands, dist.ProcessGroup], list[torch.Tensor]]
    signaled: Signaled | None
    """Runs in place of ``run``, on the group's communicator, where the ranks send so."""
    reread: Reread | None
    """What follows where the graph does not read the result as the ranks send it."""


@dataclass(frozen=True)
class Chain:
    """What does not depend on the sizes of a call, and what was worked out for sizes so far."""

    spec: ChainSpec
    sender: Sender
    rests: dict[Hashable, Rests] = field(default_factory=dict)
    """By the sizes of operands without their rows, of which there are few."""
    ready: dict[Hashable, Ready] = field(default_factory=dict)
    """By all sizes of a call."""

    @classmethod
    def of(cls, spec: ChainSpec) -> Chain:
        """A chain that has not been called."""
        return cls(spec, Sender(spec.collective, spec.reduce))


def prepare(
    chain: Chain,
    group: dist.ProcessGroup,
    operands: Operands,
    outer: int,
    receives: Sizes,
    sends: Sizes,
) -> Ready:
    """Check the operands, plan for them, and cut them as the other ranks do."""
    spec = chain.spec
    is_asked = spec.verify or not chain.ready
    with comparing.refusals_told(group, spec.wait_seconds, is_asked=is_asked):
        deal = checking.dealing_of(spec, operands, outer, receives, sends, group)
        text = checking.sizes_text(deal, *_rests(chain, operands, deal).moved)
        target_of(spec.target)
    if spec.verify:
        checking.verify(spec, group, deal, text)
    return assemble(chain, operands, deal, *_cut(chain, group, operands, deal))


def assemble(chain: Chain, operands: Operands, deal: Dealing, cut: Cut, plan: Plan | None) -> Ready:
    """What runs a chain in these groups; asks nobody. ``plan`` is this rank's, if it made one."""
    spec, rests, counts = chain.spec, _rests(chain, operands, deal), _counts(cut, deal, plan)
    text = checking.sizes_text(deal, *rests.moved)
    by_columns = spec.axis == 1 and spec.collective != "all_reduce"
    shape = (deal.units, *rests.moved[0])
    sent = packed_order(shape, cut.tile) if cut.tile and len(counts) > 1 else None
    read = packed_order(shape, spec.packed) if spec.packed else None
    if spec.is_consumer:
        results = tuple(((deal.units, *rest), dtype) for rest, dtype in rests.kept)
        local, parts = consumer_parts(deal, () if cut.schedule == "serial" else counts)
        run = Consumer(
            spec.program, chain.sender, local, parts, deal.ranks, by_columns, results, spec.inductor
        )
    elif cut.by == COLUMNS:
        run = _column_producer(chain, operands, deal, rests, counts)
    elif sent:
        parts = producer_parts(replace(deal, units=sent.tiles), counts)
        run = PackedProducer(spec.program, chain.sender, parts, sent, settings=spec.inductor)
    else:
        run = _producer(chain, deal, rests, counts, by_columns)
    signaled = None
    # Looks at the cut alone, which is the same on all ranks: all have to take one communicator.
    is_producer = isinstance(run, Producer | PackedProducer)
    if cut.schedule == "signaled" and is_producer and len(counts) > 1:
        its = replace(spec, packed=sent and sent.tile, takes_map=bool(sent))
        target, tile = target_of(spec.target), plan.tile if plan else None
        others: tuple[Tile, ...] = ()
        if chain.ready and plan:  # its rows vary
            others = reachable_tiles(plan.problem, target, spec.schedule)
        signaled = Signaled(its, target, deal, run, tile, others)
    schedule = "serial" if cut.schedule == "serial" or len(counts) == 1 else "chunked"
    in_one = whole(run) if isinstance(run, Producer | Consumer) else None
    return Ready(schedule, deal, text, in_one or run, signaled, Reread.of(sent, read))


def _producer(
    chain: Chain, deal: Dealing, rests: Rests, counts: Sizes, by_columns: bool
) -> Producer:
    program, (rest, dtype) = chain.spec.program, rests.moved
    shape = (deal.result_units, *rest)
    if by_columns:
        shape = (deal.result_units, rest[0] // deal.ranks, *rest[1:])
    kept = (((deal.units, *rest), dtype) for rest, dtype in rests.kept)
    return Producer(
        program=program,
        sent_rest=rest,
        sender=chain.sender,
        parts=producer_parts(deal, counts),
        ranks=deal.ranks,
        by_columns=by_columns,
        results=((shape, dtype), *kept),
        settings=chain.spec.inductor,
    )


def _column_producer(
    chain: Chain, operands: Operands, deal: Dealing, rests: Rests, columns: Sizes
) -> ColumnProducer:
    """The groups are so many columns of what is sent, which is a matrix."""
    spec, (rest, dtype) = chain.spec, rests.moved
    cut = column_operands(spec, [t.shape for t in operands], [t.dtype for t in operands])
    (whole,) = producer_parts(deal, (1,) if deal.is_uneven else (deal.each,))
    kept = (((deal.units, *rest), dtype) for rest, dtype in rests.kept)
    results = (((deal.result_units, *rest), dtype), *kept)
    return ColumnProducer(
        spec.program, cut, chain.sender, whole, ranges(columns), results, spec.inductor
    )


def _rests(chain: Chain, operands: Operands, deal: Dealing) -> Rests:
    spec = chain.spec
    modes = spec.program.modes
    key = tuple(
        (t.shape[1:] if mode == program.ROWS else t.shape, t.dtype)
        for t, mode in zip(operands, modes, strict=True)
    )
    if key not in chain.rests:
        found = values(spec, [on_meta(t) for t in operands], deal.receives, deal.ranks)
        sent, kept = (operands[0], found) if spec.is_consumer else (found[0], found[1:])
        if spec.axis == 1 and not spec.is_consumer:
            checking.check_columns(spec, sent, deal.ranks)
        empty = tuple((tuple(value.shape[1:]), value.dtype) for value in kept)
        chain.rests[key] = Rests((tuple(sent.shape[1:]), sent.dtype), empty)
    return chain.rests[key]


def _cut(
    chain: Chain, group: dist.ProcessGroup, operands: Operands, deal: Dealing
) -> tuple[Cut, Plan | None]:
    """Return how all ranks cut the call, and the plan that it comes from if there is one here."""
    spec, (rest, dtype) = chain.spec, _rests(chain, operands, deal).moved
    # Of nothing that other ranks need not have in common: they may have compiled another graph.
    grouped = program.OFFSETS in spec.program.modes
    identity = f"{spec.role} {grouped} {deal.is_uneven} {comparing.sizes_text(('*', *rest), dtype)}"
    if deal.is_uneven:
        return _uneven_cut(spec, group, identity, operands, deal)
    serial = Cut("serial", (deal.units,))
    if not deal.units:
        return serial, None
    text = checking.sizes_text(deal, rest, dtype)
    work = agreement.common_work(group, spec, identity, text, operands, deal)
    problem = work and work.problem(spec, deal, operands[0].shape[0])
    if work is None or problem is None:
        return serial, None
    plan = plan_call(spec.target, spec.schedule, problem)
    if plan.by == TILES and plan.tile and len(plan.rows) > 1:
        order = packed_order((deal.units, *rest), plan.tile)
        if not agreement.all_read(group, spec, identity, text, order):
            plan = plan_call(spec.target, spec.schedule, replace(problem, takes_map=False))
    cut = cut_of(plan)
    return (serial, None) if cut.by == COLUMNS and COLUMNS not in work.ways else (cut, plan)


def _uneven_cut(
    spec: ChainSpec, group: dist.ProcessGroup, identity: str, operands: Operands, deal: Dealing
) -> tuple[Cut, Plan | None]:
    if known := agreement.known_count(group, identity):
        return known, None
    shapes, dtypes = [t.shape for t in operands], [t.dtype for t in operands]
    with comparing.refusals_told(group, spec.wait_seconds, is_asked=True):
        strides = [t.stride() for t in operands]
        problem = agreement.problem_at(spec, shapes, dtypes, deal, strides)
        plan = plan_call(spec.target, spec.schedule, problem) if problem else None
    mine = cut_of(plan) if plan else Cut("serial", (deal.units,))
    call = comparing.call_of(spec)
    return agreement.common_count(group, identity, call, mine, spec.wait_seconds), plan


def cut_of(plan: Plan) -> Cut:
    """What of a plan the ranks have to have in common."""
    return Cut(plan.schedule, plan.rows, plan.by, plan.tile if plan.by == TILES else None)


def _counts(cut: Cut, deal: Dealing, plan: Plan | None) -> Sizes:
    """Return the units of each group, of each rank where they are dealt out by rank; or columns, or
    tiles."""
    if cut.by == COLUMNS or (cut.by == TILES and len(cut.rows) > 1):
        return cut.rows
    if deal.is_uneven or plan is None or len(cut.rows) == 1:
        return cut.rows if deal.is_uneven else (deal.each,)
    rows = plan.problem.m // deal.each
    return tuple(count // rows for count in cut.rows)
