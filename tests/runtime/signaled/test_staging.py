"""Staging layouts against permutations by brute force, and whole collectives through them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from overlapc.codegen import Bands
from overlapc.codegen.bands import Run
from overlapc.errors import KernelError
from overlapc.runtime.cutting.layout import Dealing, Part, everything, producer_parts
from overlapc.runtime.cutting.units import band
from overlapc.runtime.signaled.staging import Staging, consecutive
from tests.codegen.band_orders import staged_bands

N = 3
"""Columns of C."""
CASES = 12
"""Random ones of each kind and number of ranks."""


@dataclass(frozen=True)
class Case:
    """One collective of all ranks, in groups."""

    collective: str
    ranks: int
    outer: int
    counts: tuple[int, ...]
    """Units of each group of every rank, or in proportion to which blocks are cut."""
    block_m: int
    sizes: tuple[tuple[int, ...], ...] = ()
    """Units from each rank to each, of an uneven all-to-all."""

    def deal(self, me: int) -> Dealing:
        receives = tuple(sends[me] for sends in self.sizes)
        sends = self.sizes[me] if self.sizes else ()
        units = sum(sends) if self.sizes else sum(self.counts) * self.ranks
        if self.collective == "all_reduce":
            units = sum(self.counts)
        return Dealing(self.collective, 0, units, self.ranks, me, self.outer, receives, sends)

    def parts(self, me: int) -> list[Part]:
        return producer_parts(self.deal(me), self.counts)


def composition(generator: random.Random, total: int, groups: int) -> tuple[int, ...]:
    """Groups of at least one unit each."""
    cuts = sorted(generator.sample(range(1, total), groups - 1))
    return tuple(end - start for start, end in zip((0, *cuts), (*cuts, total), strict=True))


def random_case(kind: str, ranks: int, seed: int) -> Case:
    generator = random.Random(f"{kind} {ranks} {seed}")
    groups = generator.randint(1, 5)
    outer = generator.choice((1, 1, 2, 3)) if kind == "reduce_scatter" else 1
    total = outer * generator.randint(groups, 9)
    sizes = ()
    if kind == "uneven":
        sizes = tuple(
            tuple(generator.choice((0, 1, 2, 7, 13)) for _ in range(ranks)) for _ in range(ranks)
        )
    return Case(
        "all_to_all" if kind == "uneven" else kind,
        ranks,
        outer,
        composition(generator, max(total, groups), groups),
        generator.choice((1, 2, 4, 16)),
        sizes,
    )


KINDS = ("all_reduce", "reduce_scatter", "all_to_all", "uneven")


def cases(kind: str, ranks: int) -> list[Case]:
    return [random_case(kind, ranks, seed) for seed in range(CASES)]


def permuted(case: Case, me: int) -> list[int]:
    """The rows of C in the order of the staging buffer: sorted by group, then rank, then row."""
    deal, keys = case.deal(me), []
    ends = [sum(case.counts[: group + 1]) for group in range(len(case.counts))]
    for unit in range(deal.units):
        rank, number, size = 0, unit, ends[-1]
        if case.sizes:
            rank, number, size = owner(case.sizes[me], unit)
        elif case.collective != "all_reduce":
            inner = deal.each // case.outer
            rank = unit // inner % case.ranks
            number = unit // inner // case.ranks * inner + unit % inner
        # Blocks of other sizes are cut in the same proportion, downwards.
        group = next(g for g, end in enumerate(ends) if number < size * end // ends[-1])
        keys.append((group, rank, number, unit))
    return [unit for *_, unit in sorted(keys)]


def owner(sizes: Sequence[int], unit: int) -> tuple[int, int, int]:
    """Rank, place in its block, and size of that block of a unit."""
    rank = 0
    while unit >= sizes[rank]:
        unit -= sizes[rank]
        rank += 1
    return rank, unit, sizes[rank]


@pytest.mark.parametrize("ranks", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_map_is_the_permutation_by_group_rank_and_row(kind, ranks):
    for case in cases(kind, ranks):
        for me in range(ranks):
            staging = Staging.of(case.parts(me))
            order = permuted(case, me)
            staged = {
                run.target + row: run.source + row
                for run in (run for runs in staging.runs for run in runs)
                for row in range(run.rows)
            }
            assert [staged[place] for place in range(len(order))] == order


def stage(case: Case, staging: Staging, c: torch.Tensor) -> torch.Tensor:
    """What the kernel does: store every row of tiles where its run says."""
    staged = torch.full_like(c, torch.nan)
    bands = staging.bands(case.block_m, first_run=case.ranks // 2) if len(c) else Bands((), 1)
    announced = []
    for runs in bands.runs:
        announced.append(0)
        for its in runs:
            for row in range(0, its.rows, case.block_m):
                rows = min(case.block_m, its.rows - row)
                place = slice(its.target + row, its.target + row + rows)
                assert staged[place].isnan().all(), "a row is staged twice"
                staged[place] = c[its.source + row : its.source + row + rows]
                announced[-1] += N
    assert tuple(announced) == bands.targets(N)
    return staged


def run(case: Case, stagings: Sequence[Staging], cs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Every group's collective on the staging buffers of all ranks; the result of each."""
    everyone = range(case.ranks)
    staged = [stage(case, stagings[me], cs[me]) for me in everyone]
    parts = [case.parts(me) for me in everyone]
    places = [consecutive(0, counts_of(staging)) for staging in stagings]
    units = [case.deal(me).result_units for me in everyone]
    results = [torch.full((u, N), torch.nan, dtype=cs[0].dtype) for u in units]
    for group in range(len(case.counts)):
        sent = [blocks(case, parts[me][group], staged[me][places[me][group]]) for me in everyone]
        for me in everyone:
            receive(case, parts[me][group], [its[me] for its in sent], results[me])
    return results


def counts_of(staging: Staging) -> list[int]:
    """Rows of each group."""
    return [sum(run.rows for run in runs) for runs in staging.runs]


def blocks(case: Case, part: Part, sent: torch.Tensor) -> list[torch.Tensor]:
    """What a group sends to each rank."""
    if case.collective == "all_reduce":
        return [sent] * case.ranks
    counts = part.sends or [part.computed.count // case.ranks] * case.ranks
    return [sent[its] for its in consecutive(0, counts)]


def landings(part: Part, counts: Sequence[int]) -> list[list[int]]:
    """The rows of a result in which each rank's part of a group lands, ``counts`` rows each."""
    rows = [row for start, count in part.landed.slices for row in range(start, start + count)]
    return [rows[its] for its in consecutive(0, counts)]


def receive(case: Case, part: Part, sent: list[torch.Tensor], result: torch.Tensor) -> None:
    """Write what every rank sent to where it belongs, where nothing has been written."""
    if case.collective != "all_to_all":
        (rows,) = landings(part, [part.landed.count])
        assert result[rows].isnan().all()
        result[rows] = torch.stack(sent).sum(0)
        return
    counts = part.receives or [part.landed.count // case.ranks] * case.ranks
    for rows, block in zip(landings(part, counts), sent, strict=True):
        assert result[rows].isnan().all()
        result[rows] = block


def expected(case: Case, cs: Sequence[torch.Tensor], me: int) -> torch.Tensor:
    """What PyTorch's collective gives on the whole of C."""
    if case.collective == "all_reduce":
        return torch.stack(list(cs)).sum(0)
    if case.sizes:
        blocks = []
        for sender, c in enumerate(cs):
            blocks.append(c.split(case.sizes[sender])[me])
        return torch.cat(blocks)
    if case.collective == "all_to_all":
        return torch.cat([c.chunk(case.ranks)[me] for c in cs])
    # Scattered is a dimension of [outer, ranks * inner, ...]: the result is [outer, inner, ...].
    grids = [c.view(case.outer, case.ranks, -1, N)[:, me] for c in cs]
    return torch.stack(grids).sum(0).reshape(-1, N)


def random_rows(case: Case) -> list[torch.Tensor]:
    return [torch.randn(case.deal(me).units, N, dtype=torch.float64) for me in range(case.ranks)]


def check(case: Case, stagings: Sequence[Staging]) -> None:
    torch.manual_seed(case.ranks)
    cs = random_rows(case)
    for me, result in enumerate(run(case, stagings, cs)):
        torch.testing.assert_close(result, expected(case, cs, me))


def stagings_of(case: Case) -> list[Staging]:
    return [Staging.of(case.parts(me)) for me in range(case.ranks)]


@pytest.mark.parametrize("ranks", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_staged_groups_give_what_pytorch_gives(kind, ranks):
    for case in cases(kind, ranks):
        check(case, stagings_of(case))


CASE = Case("reduce_scatter", 3, 1, (10, 4, 8), 4)


def moved(staging: Staging, by: dict[int, int]) -> Staging:
    """The staging with some runs of its first group moved by some rows."""
    first, *others = staging.runs
    changed = [replace(r, target=r.target + by.get(at, 0)) for at, r in enumerate(first)]
    return Staging((tuple(changed), *others))


def ordered_by_rank(staging: Staging) -> Staging:
    """Rank after rank, and inside it group after group, as C itself is: the wrong way round."""
    return Staging(
        tuple(tuple(replace(run, target=run.source) for run in runs) for runs in staging.runs)
    )


def exchanged(staging: Staging) -> Staging:
    """The parts of two ranks in one group change places."""
    rows = staging.runs[0][0].rows
    return moved(staging, {0: rows, 1: -rows})


@pytest.mark.parametrize("mutant", [ordered_by_rank, exchanged])
@pytest.mark.parametrize("collective", ["reduce_scatter", "all_to_all"])
def test_a_wrong_permutation_is_seen(mutant, collective):
    case = replace(CASE, collective=collective)
    stagings = stagings_of(case)
    check(case, stagings)
    with pytest.raises(AssertionError):
        check(case, [mutant(staging) for staging in stagings])
    # One rank alone that does so is seen as well.
    with pytest.raises(AssertionError):
        check(case, [mutant(stagings[0]), *stagings[1:]])


def test_an_overlap_is_seen():
    stagings = [moved(staging, {1: -1}) for staging in stagings_of(CASE)]
    with pytest.raises(AssertionError, match="staged twice"):
        check(CASE, stagings)


def test_aligned_groups_cost_no_tile_more():
    aligned = Case("reduce_scatter", 4, 1, (32, 16, 16), 16)
    staging = Staging.of(aligned.parts(0))
    assert sum(staging.bands(16).tile_rows) == 4 * 64 // 16
    assert sum(staging.bands(32).tile_rows) == 4 * (1 + 1 + 1)


def test_neighbours_stay_one_run():
    whole = Case("all_to_all", 4, 1, (8,), 4)
    assert Staging.of(whole.parts(0)).runs == ((Run(0, 0, 32),),)


def test_even_parts_are_the_bands_of_the_kernel():
    for rank in range(3):
        staging = Staging.of(CASE.parts(rank))
        assert staging.bands(4, first_run=rank) == staged_bands(CASE.counts, 3, 4, first=rank)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_announce_groups_in_one_order(kind):
    """Plain collectives meet by their order: a rank may turn what is inside a group alone."""
    for case in cases(kind, 4):
        for me in range(4):
            staging = Staging.of(case.parts(me))
            if any(staging.runs):
                announced = [runs for runs in staging.runs if runs]
                turned = staging.bands(4, first_run=me).runs
                assert [set(runs) for runs in turned] == [set(runs) for runs in announced]


def test_groups_without_rows_are_not_announced():
    staging = Staging.of(Case("all_to_all", 2, 1, (1, 1, 1), 4, ((0, 1), (1, 0))).parts(0))
    assert counts_of(staging) == [0, 0, 1]
    assert staging.bands(4).targets(2) == (2,)
    with pytest.raises(KernelError, match="no row"):
        Staging(((), ())).bands(4)


def test_what_sends_only_some_of_its_rows_is_refused():
    part = Part(band(2, 6, 8), band(1, 3, 4), everything(2))
    with pytest.raises(KernelError, match="cannot be staged"):
        Staging.of([part])
