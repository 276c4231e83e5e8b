"""Trials of chains with epilogues over real gloo ranks: what they compute, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc
from overlapc.errors import ProblemError
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan, plan_rows
from overlapc.planning.target import Target
from overlapc.planning.tuned import TunedPlan
from overlapc.runtime import reference
from overlapc.runtime.chunked.column_producers import ColumnProducer
from overlapc.runtime.chunked.consumers import Consumer
from overlapc.runtime.chunked.producers import Producer
from overlapc.runtime.linear.trials import graph_of
from overlapc.runtime.measuring import bench as measuring
from overlapc.runtime.measuring.kernel_trials import KernelTrial
from overlapc.runtime.measuring.trials import Trial, Trials
from overlapc.runtime.programs.execution import function
from overlapc.runtime.programs.program import OFFSETS, ROWS, WHOLE, Program, Step
from overlapc.runtime.programs.trial_programs import TrialProgram, packed
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.sizing import problem_of
from overlapc.tuning.chains import tune_chains
from tests.ranks import Ranks
from tests.runtime.chains import chain
from tests.runtime.programs.cases import operand, value
from tests.targets import FAST_LINK, SLOW_LINK

M, N, K = 96, 64, 32
FP8 = "float8_e4m3fn"
EPILOGUE = Program(
    (ROWS, WHOLE, WHOLE, ROWS),
    (
        Step("aten.addmm.default", (operand(2), operand(0), operand(1))),
        Step("aten.gelu.default", (value(0),)),
        Step("aten.add.Tensor", (value(1), operand(3))),
    ),
    value(2),
)
KEEPING = replace(EPILOGUE, kept=(value(0),))
BATCHES = Program(
    (ROWS, WHOLE, ROWS),
    (
        Step("aten.view.default", (operand(0), (-1, K))),
        Step("aten.mm.default", (value(0), operand(1))),
        Step("aten.view.default", (value(1), (-1, 4, N))),
        Step("aten.mul.Tensor", (value(2), operand(2))),
    ),
    value(3),
)
SCALED = Program(
    (ROWS, WHOLE, ROWS, WHOLE),
    (
        Step(
            "aten._scaled_mm.default",
            (*map(operand, range(4)), None, None, torch.bfloat16),
        ),
    ),
    value(0),
)
SEVERAL = Program(
    (ROWS, WHOLE, WHOLE),
    (
        Step("aten.mm.default", (operand(0), operand(1))),
        Step("aten.silu.default", (value(0),)),
        Step("aten.mm.default", (operand(0), operand(2))),
        Step("aten.mul.Tensor", (value(1), value(2))),
    ),
    value(3),
)
GROUPED = Program(
    (ROWS, WHOLE, OFFSETS),
    (Step("aten._grouped_mm.default", tuple(map(operand, range(3)))),),
    value(0),
)
EXPERTS = Program((ROWS, ROWS), (Step("aten.bmm.default", (operand(0), operand(1))),), value(0))
CASES = {
    "epilogue": (EPILOGUE, [(M, K), (K, N), (N,), (M, N)], ["float32"] * 4),
    "keeping": (KEEPING, [(M, K), (K, N), (N,), (M, N)], ["float32"] * 4),
    "batches": (BATCHES, [(M // 4, 4, K), (K, N), (M // 4, 4, N)], ["float32"] * 3),
    "several": (SEVERAL, [(M, K), (K, N), (K, N)], ["float32"] * 3),
    "experts": (EXPERTS, [(M // 4, 4, K), (M // 4, K, N)], ["float32"] * 2),
    "scaled": (SCALED, [(M, K), (K, N), (M, 1), (1, N)], [FP8, FP8, "float32", "float32"]),
    "grouped": (GROUPED, [(M, K), (3, K, N), (3,)], ["bfloat16", "bfloat16", "int32"]),
}
KINDS = ("gemm_all_reduce", "gemm_reduce_scatter", "gemm_all_to_all")
CONSUMERS = {
    "epilogue": [("all_gather_gemm", 0), ("all_to_all_gemm", 0)],
    "keeping": [("all_gather_gemm", 0)],
    "batches": [("all_gather_gemm", 1), ("all_to_all_gemm", 1)],
    "several": [("all_gather_gemm", 0)],
    "experts": [("all_gather_gemm", 1), ("all_to_all_gemm", 0)],
    "scaled": [("all_gather_gemm", 0)],
    "grouped": [("all_gather_gemm", 0), ("all_to_all_gemm", 0)],
}
"""Kinds and dimensions with which each case is tried as a consumer."""
TRIED = [(name, kind, 0) for name in CASES for kind in KINDS]
TRIED += [(name, *case) for name, cases in CONSUMERS.items() for case in cases]


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def problem(name: str, kind: str = "gemm_all_reduce", axis: int = 0) -> Problem:
    program, (first, *shapes), dtypes = CASES[name]
    if kind.endswith("_gemm"):
        program = consuming(program)
        units, width, *rest = first
        if kind == "all_gather_gemm":
            first = (units, width // 2, *rest) if axis else (units // 2, width, *rest)
        elif axis:
            first = (2 * units, width // 2, *rest)
    spec = chain(kind, program, SLOW_LINK, axis=axis)
    return problem_of(spec, [first, *shapes], [getattr(torch, dtype) for dtype in dtypes], 2)


def consuming(program: Program) -> Program:
    """The same after a collective; of what keeps values, the gathered tensor is kept as well."""
    assert program.sent is not None
    more = (*program.kept, operand(0)) if program.kept else ()
    return replace(program, sent=None, kept=(program.sent, *more))


def in_parts(its: Problem) -> Plan:
    return plan_rows(its, SLOW_LINK, (32, 64))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Leave out Inductor, which takes seconds for a chain."""
    with mock.patch.object(torch, "compile", lambda function, **_: function):
        yield


@pytest.mark.parametrize("name", CASES)
def test_a_problem_says_what_is_computed(name: str) -> None:
    """Also when it comes from a file, and for other rows."""
    program, shapes, dtypes = CASES[name]
    its = problem(name)
    found = TrialProgram.of(its)
    assert found.program == program
    for rows in (M, M // 2):
        made = found.tensors(rows, torch.device("cpu"))
        modes = zip(shapes, program.modes, strict=True)
        wanted = [(s[0] * rows // M, *s[1:]) if mode == ROWS else s for s, mode in modes]
        assert [tuple(t.shape) for t in made] == wanted
        assert [t.dtype for t in made] == [getattr(torch, dtype) for dtype in dtypes]
        assert made[1].stride()[-2:] == ((1, K) if made[1].dim() == 2 else (N, 1))
    made = plan(its, SLOW_LINK)
    assert Plan.from_json(made.to_json()).problem == its


def test_other_pointwise_work_is_another_problem() -> None:
    program, shapes, dtypes = CASES["epilogue"]
    first, _, last = program.steps
    other = replace(program, steps=(first, Step("aten.tanh.default", (value(0),)), last))
    spec, known = chain("gemm_all_reduce", other, SLOW_LINK), problem("epilogue")
    its = problem_of(spec, shapes, [getattr(torch, dtype) for dtype in dtypes], 2)
    assert its != known
    assert replace(its, program=known.program, kernel_sums=known.kernel_sums) == known


def run(rank: int, its: Problem) -> tuple[float, list[Program], float]:
    """The error of a plan in two groups, which programs a trial of it ran, and the error of what is
    computed where nothing is cut."""
    group, made, ran = dist.group.WORLD, in_parts(its), []
    trial = KernelTrial(its, SLOW_LINK, group, torch.device("cpu"))
    torch.manual_seed(rank)
    found, *_ = trial.ready(made).run(trial.operands, group)
    wanted, *_ = reference.chain(trial.spec(made), trial.operands, its.blocks)
    error = error_of(found, wanted)

    def spied(producer: Any) -> Any:
        call = producer.__call__

        def run(self: Any, *given: Any) -> Any:
            ran.append(self.program)
            return call(self, *given)

        return mock.patch.object(producer, "__call__", run)

    with spied(Producer), spied(ColumnProducer), spied(Consumer), uncompiled():
        trials = Trials(group, torch.device("cpu"), SLOW_LINK)
        assert not any(trials.why_not(each) for each in (made, plan_rows(its, SLOW_LINK, (its.m,))))
        ran.clear()
        assert trials.run(made) > 0
        assert trials.run(plan_rows(its, SLOW_LINK, (its.m,))) > 0
        its_own = TrialProgram.of(its).tensors(its.m, torch.device("cpu"))
        with mock.patch.object(TrialProgram, "tensors", return_value=its_own):
            alone = Trial(its, group, torch.device("cpu")).alone(*its_own[: its.is_consumer])
    stays = {"_communicated": lambda spec, sent, *_: sent, "_gathered": lambda spec, come, *_: come}
    with mock.patch.multiple(reference, **stays):
        whole, *_ = reference.chain(trial.spec(made), its_own)
    return error, ran, error_of(alone, whole)


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("name", "kind", "axis"), TRIED)
def test_a_trial_computes_the_chain(name: str, kind: str, axis: int, pair: Ranks) -> None:
    """Mutants: `Trials.run` that looks at the tile alone, a trial of the GEMM without the rest,
    consumers whose problem drops the program, weights of experts turned as a linear layer's."""
    program = CASES[name][0]
    for error, ran, alone in pair.run(run, problem(name, kind, axis)):
        assert max(error, alone) < (1e-2 if name in ("scaled", "grouped") else 2e-6)
        assert ran == [consuming(program) if kind.endswith("_gemm") else program]


def test_ends_of_experts_are_those_of_equal_shares() -> None:
    """Ends are data, which no graph holds. Mutants: random ones, those of all rows at each call."""
    found = TrialProgram.of(problem("grouped", "all_gather_gemm"))
    for rows in (M, M // 2 + 1):
        *_, ends = found.tensors(rows, torch.device("cpu"))
        assert (ends.dtype, ends.tolist()) == (torch.int32, [rows // 3, rows * 2 // 3, rows])


def in_numbers(rank: int, its: Problem, rows: tuple[int, ...], by: str) -> tuple[float, list, list]:
    """The error of a trial that is told how many rows go where, what the op would send for these
    numbers, and what the trial of a whole run does."""
    group, sent = dist.group.WORLD, []
    start = Sender.start

    def spy(
        self: Sender, group: Any, out: Any, given: Any, receives: Any = (), to: Any = ()
    ) -> Any:
        sent.append((list(given.shape), list(receives), list(to)))
        return start(self, group, out, given, receives, to)

    made = plan_rows(its, SLOW_LINK, rows, by=by)
    trial = KernelTrial(its, SLOW_LINK, group, torch.device("cpu"))
    torch.manual_seed(rank)
    with mock.patch.object(Sender, "start", spy):
        found, *_ = trial.ready(made).run(trial.operands, group)
    wanted, *_ = reference.chain(trial.spec(made), trial.operands, 1, *trial._splits)
    direct, sent[:] = list(sent), []
    with mock.patch.object(Sender, "start", spy), uncompiled():
        trials = Trials(group, torch.device("cpu"), SLOW_LINK)
        for each in (made, plan_rows(its, SLOW_LINK, (its.m,))):
            assert not trials.why_not(each)
            assert trials.run(each) > 0
    return error_of(found, wanted), direct, sent[: len(direct)]


@pytest.mark.parametrize(
    ("name", "m", "cut", "by"),
    [
        ("experts", M, (32, 64), "rows"),
        ("plain", 95, (31, 64), "rows"),
        pytest.param("epilogue", M, (32, 64), "rows", marks=pytest.mark.long),
        pytest.param("epilogue", M, (16, 48), "columns", marks=pytest.mark.long),
        pytest.param("epilogue", 95, (31, 64), "rows", marks=pytest.mark.long),
    ],
)
def test_what_a_graph_has_numbers_for_is_tried_with_numbers(
    name: str, m: int, cut: tuple[int, ...], by: str, pair: Ranks
) -> None:
    """As even as they can be: groups are the op's, some rows of what each rank gets. Mutants: a
    trial of plain bands, one without what is computed beside, one of an even deal."""
    its = problem("epilogue" if name == "plain" else name, "gemm_all_to_all")
    multiple = 4 if name == "experts" else 1
    its = replace(its, m=m, row_multiple=multiple, deals_unevenly=True)
    its = replace(its, program="") if name == "plain" else its
    for error, direct, tried in pair.run(in_numbers, its, cut, by):
        assert error < 2e-6
        assert tried == direct
        assert len(direct) == 2
        assert all(len(to) == len(come) == 2 for _, come, to in direct)
        rows = sum(sum(to) for _, _, to in direct) // (2 if by == "columns" else 1)
        assert rows * multiple == m


def exchanged(rank: int) -> tuple[str, int, float]:
    """Of a graph whose all-to-all has equal numbers for all ranks: what is tried, in how many
    groups a call runs where two of rows won, and how wrong its result is."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    x, w, sent = torch.randn(M, K), torch.randn(K, N), []
    start = Sender.start

    def layer(x: torch.Tensor) -> torch.Tensor:
        out = functional.all_to_all_single((x @ w).tanh(), None, None, dist.group.WORLD)
        return functional.wait_tensor(out)

    def spy(self: Sender, *given: Any) -> Any:
        sent.append(given)
        return start(self, *given)

    with torch.no_grad():
        (site,) = overlapc.explain(layer, options={"target": FAST_LINK})(x).sites
        its = site.plan.problem.resolved()
        tuned = TunedPlan(its, (M // 4, M - M // 4), 1e-3)
        target = replace(FAST_LINK, name="exchanging", tuned=(tuned,))
        compiled = torch.compile(layer, backend="overlapc", options={"target": target})
        with mock.patch.object(Sender, "start", spy):
            found = compiled(x)
    given = (x.double() @ w.double()).tanh()
    out = torch.empty(M, N, dtype=torch.float64)
    dist.all_to_all_single(out, given)
    return " ".join(its.ops), len(sent), error_of(found, out)


@pytest.mark.long
def test_a_graph_with_equal_numbers_runs_what_won_its_trial(pair: Ranks) -> None:
    """Which was of the whole chain. Mutants: no program of what has numbers, rows of each rank in
    groups of what has not."""
    for ops, groups, error in pair.run(exchanged, timeout=60):
        assert (ops, groups) == ("mm tanh", 2)
        assert error < 2e-6


def test_the_serial_peer_gives_all_that_the_chain_does() -> None:
    """Also what has come. Mutant: `graph_of` that takes all results for values of steps."""
    program = consuming(KEEPING)
    given = TrialProgram.of(problem("keeping", "all_gather_gemm")).tensors(M, torch.device("cpu"))
    found, wanted = graph_of(program)(*given), function(program)(given, ())
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def arrived(rank: int, its: Problem) -> bool:
    """Whether what a consumer's serial trial computes with is what the ranks' parts make up."""
    group, seen = dist.group.WORLD, []
    with mock.patch.object(Trial, "alone", property(lambda self: seen.append)):
        trial = Trial(its, group, torch.device("cpu"))
        trial.run((its.m,))
    spec = KernelTrial(its, SLOW_LINK, group, torch.device("cpu")).spec()
    wanted = reference._gathered(spec, trial._mine, its.blocks, 2, (), (), "0")
    return torch.equal(seen[-1], wanted) and seen[-1].is_contiguous()


@pytest.mark.parametrize(
    ("kind", "axis", "blocks"),
    [
        *(("all_gather_gemm", 0, 1), ("all_gather_gemm", 0, 3), ("all_gather_gemm", 1, 1)),
        *(("all_to_all_gemm", 0, 2), ("all_to_all_gemm", 1, 1)),
    ],
)
def test_the_serial_peer_computes_with_what_has_come(
    kind: str, axis: int, blocks: int, pair: Ranks
) -> None:
    """Mutants: parts placed in the order of the ranks whatever the axis, or the blocks."""
    its = replace(problem("batches", kind, axis), blocks=blocks)
    assert all(pair.run(arrived, its))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_trial_is_dealt_out_along_the_dimension_of_its_chain(axis: int) -> None:
    """Units of four rows, which two ranks divide as well. Mutant: one that takes the rows alone."""
    its = problem("batches", "gemm_reduce_scatter", axis)
    trial = KernelTrial(its, SLOW_LINK, mock.Mock(), torch.device("cpu"))
    assert trial.spec().axis == axis


def tuned(rank: int, problems: list[Problem], known: Target = SLOW_LINK) -> tuple[Target, Target]:
    with uncompiled(), mock.patch.object(measuring, "REST_SECONDS", 0.0):
        target = tune_chains(
            [] if rank else problems, target=None if rank else known, seconds=0.1, save=False
        )
    path = Path(f"tuned-{rank}.json").absolute()
    target.save(path)
    try:
        return target, Target.load(path)
    finally:
        path.unlink()


def test_what_won_is_planned_for_the_chain_that_was_tried(pair: Ranks) -> None:
    """Mutants: `Problem.resolved` that leaves the program out, or that of consumers."""
    problems = [problem("epilogue"), problem("scaled", "gemm_reduce_scatter")]
    problems.append(problem("several", "all_gather_gemm"))
    for target, stored in pair.run(tuned, problems):
        assert stored == target
        assert [its.problem for its in target.tuned] == [its.resolved() for its in problems]
        for its, won in zip(problems, target.tuned, strict=True):
            made = plan(its, stored)
            assert (made.code, made.rows) == ("measured_best", won.rows)
        # Ranks that compute unlike things decide by it too.
        for its in problems:
            assert plan(replace(its, program=""), stored).code == "measured_alike"


def tuned_without(rank: int, problems: list[Problem], known: Target = SLOW_LINK) -> Target:
    """On ranks of which the second lacks an op of the first problem."""
    alone = Trial.alone.func  # type: ignore[attr-defined]

    def fails(self: Trial) -> Any:
        if rank and "gelu" in self.problem.program:
            raise NotImplementedError("no gelu here")
        return alone(self)

    with mock.patch.object(Trial, "alone", property(fails)):
        return tuned(rank, problems, known)[0]


def refused_without(rank: int, problems: list[Problem]) -> str:
    with pytest.raises(ProblemError) as caught:
        tuned_without(rank, problems)
    return caught.value.what


def test_what_one_rank_cannot_compute_is_tried_on_none(pair: Ranks) -> None:
    """Mutant: a `why_not` that makes nothing ready."""
    problems = [problem("epilogue"), problem("batches")]
    for target in pair.run(tuned_without, problems):
        assert [its.problem for its in target.tuned] == [problems[1].resolved()]


def test_what_cannot_be_tried_this_time_keeps_what_was_measured(pair: Ranks) -> None:
    """Mutant: one that forgets all that it was asked for. Without anything to try it is an error,
    on every rank."""
    problems = [problem("epilogue"), problem("batches")]
    before = TunedPlan(problems[0].resolved(), (32, 64), 0.5)
    known = replace(SLOW_LINK, tuned=(before,))
    for target in pair.run(tuned_without, problems, known):
        assert target.tuned[0] == before
        assert [its.problem for its in target.tuned[1:]] == [problems[1].resolved()]
    for what in pair.run(refused_without, problems[:1]):
        assert what.startswith("None of 1 chains")


def test_what_failed_is_not_made_again_for_each_plan() -> None:
    """Inductor takes seconds for a chain. Mutant: trials that forget what failed."""
    made: list[str] = []

    def fails(self: Trial) -> Any:
        made.append(self.problem.program)
        raise NotImplementedError("no such op here")

    failing, other = problem("epilogue"), problem("batches")
    trials = Trials(mock.Mock(), torch.device("cpu"), SLOW_LINK)
    with mock.patch.object(Trial, "alone", property(fails)):
        for rows in ((32, 64), (48, 48), (M,)):
            assert "no such op" in trials.why_not(plan_rows(failing, SLOW_LINK, rows))
        assert trials.why_not(in_parts(other))
        assert trials.why_not(in_parts(failing))  # nor after another was tried
    assert made == [failing.program, other.program]
    with uncompiled():
        assert not trials.why_not(in_parts(problem("keeping")))  # nor does it hold for others


def compiled(rank: int, its: Problem) -> float:
    target = tune_chains([its], target=SLOW_LINK, seconds=0.1, save=False)
    return target.tuned[0].seconds


@pytest.mark.long
def test_the_serial_peer_is_what_inductor_makes(pair: Ranks) -> None:
    for seconds in pair.run(compiled, problem("epilogue"), timeout=120):
        assert 0 < seconds < 5


@pytest.mark.parametrize("collective", ["reduce_scatter", "all_to_all"])
def test_a_serial_trial_sends_each_rank_what_the_chain_would(collective):
    """Mutants: nothing is packed, along dimension 1 or of blocks; ranks and blocks exchanged."""
    ranks, blocks, each = 3, 2, 4
    c = torch.randn(blocks * ranks * each, ranks * 5)
    problem = Problem(len(c), c.shape[1], 8, "float32", collective, ranks)
    plain = packed(problem, c)
    by_blocks = packed(replace(problem, blocks=blocks), c)
    by_columns = packed(replace(problem, row_multiple=1, axis=1), c)
    for rank in range(ranks):
        own = slice(rank * each, (rank + 1) * each)
        wanted = torch.cat([block[own] for block in c.chunk(blocks)])
        assert torch.equal(plain.flatten().chunk(ranks)[rank], c.chunk(ranks)[rank].flatten())
        assert torch.equal(by_blocks.flatten().chunk(ranks)[rank], wanted.flatten())
        assert torch.equal(
            by_columns.flatten().chunk(ranks)[rank], c[:, rank * 5 : rank * 5 + 5].flatten()
        )
    odd = torch.randn(7, 15)
    assert packed(replace(problem, blocks=blocks), odd) is odd
