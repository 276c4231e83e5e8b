"""Gradients of the op of attention where no kernel runs, and which sites may want them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import KernelError
from overlapc.graphs.collectives import collective_starts, sent_by
from overlapc.planning.attention.decision import decide
from overlapc.planning.attention.problem import AttentionProblem
from overlapc.runtime.attention import gradients as attention_gradients
from overlapc.runtime.attention.gradients import why_no_gradient
from tests.attention.catalogue import REWRITTEN, plain
from tests.attention.rewriting import rewrite
from tests.codegen import attention_oracle
from tests.codegen import score_programs as programs

SPEC = AttentionSpec("float32", 8, 12, groups=2, scale=0.3)
CAUSAL = replace(SPEC, after=0, align="bottom_right")
CASES = {
    "plain": SPEC,
    "causal": CAUSAL,
    "window": replace(SPEC, before=3, after=1),
    "lengths": replace(CAUSAL, lengths=True, dead="zero"),
    "sinks": replace(CAUSAL, sinks=True),
    "soft-cap": replace(SPEC, program=programs.SOFT_CAP),
    "slopes": replace(SPEC, program=programs.ALIBI),
    "a mask": replace(SPEC, program=programs.KEPT),
    "every shape": replace(SPEC, program=programs.EVERY_SHAPE),
}


def operands(spec, dtype=torch.float32):
    """Leaves first, then what has no gradient: q, k, v, inputs, sinks; lengths."""
    torch.manual_seed(0)
    shapes = {"matrix": (1, 4, 9, 7), "column": (4, 9, 1), "vector": (2, 1, 1, 7),
              "one": (4, 1, 1), "scalar": ()}  # fmt: skip
    sides = [torch.randn(2, h, n, d) for h, n, d in ((4, 9, 8), (2, 7, 8), (2, 7, 12))]
    inputs = [
        torch.rand(shapes[item.shape]) < 0.7
        if item.dtype == "bool"
        else torch.randn(shapes[item.shape])
        for item in spec.inputs
    ]
    sinks = torch.randn(4) if spec.sinks else None
    lengths = torch.tensor([0, 5], dtype=torch.int32) if spec.lengths else None
    inputs = [t.to(dtype).requires_grad_() if t.is_floating_point() else t for t in inputs]
    sides = [side.to(dtype).requires_grad_() for side in sides]
    return sides, inputs, None if sinks is None else sinks.to(dtype).requires_grad_(), lengths


def leaves_of(sides, inputs, sinks):
    return [t for t in (*sides, *inputs, sinks) if t is not None and t.requires_grad]


def call(spec, sides, inputs, sinks, lengths):
    arguments = (*sides, inputs, lengths, None, sinks, str(spec), "a site of this test")
    return torch.ops.overlapc.attention(*arguments)


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES.keys())
def test_they_are_those_of_eager(spec):
    sides, inputs, sinks, lengths = operands(spec)
    out, sums = call(spec, sides, inputs, sinks, lengths)
    weights, of_sums = torch.randn_like(out), torch.randn_like(sums)
    leaves = leaves_of(sides, inputs, sinks)
    found = torch.autograd.grad([out, sums], leaves, [weights, of_sums])
    named = {"inputs": inputs, "sinks": sinks, "lengths": lengths}
    wanted_out, wanted_sums = attention_oracle.attention(spec, *sides, **named)
    wanted = torch.autograd.grad(
        [wanted_out, wanted_sums], leaves, [weights.double(), of_sums.double()]
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["window", "sinks", "soft-cap", "every shape"])
def test_gradcheck(name):
    """In float64, in which the op computes where its operands are."""
    spec = CASES[name]
    sides, inputs, sinks, lengths = operands(spec, torch.float64)
    leaves = leaves_of(sides, inputs, sinks)

    def result(*given):
        own = iter(given)
        q, k, v = next(own), next(own), next(own)
        read = [next(own) if t.requires_grad else t for t in inputs]
        return call(spec, (q, k, v), read, next(own, None), lengths)[0]

    assert torch.autograd.gradcheck(result, leaves, fast_mode=True)


def test_its_op_is_one_that_torch_can_trace():
    sides, _, sinks, lengths = operands(CASES["sinks"])
    spec = replace(CASES["sinks"], program=programs.ALIBI)
    bias = torch.randn(2, 1, 1, 7, requires_grad=True)
    arguments = (*sides, [bias], lengths, None, sinks, str(spec), "a site of this test")
    torch.library.opcheck(torch.ops.overlapc.attention.default, arguments)


def test_the_op_of_gradients_is_no_collective():
    graph = torch.fx.Graph()
    graph.call_function(torch.ops.overlapc.attention_backward.default, ())
    assert collective_starts(graph) == []
    assert sent_by(graph) == {}


def test_without_logarithms_of_sums_there_are_none():
    sides, inputs, sinks, lengths = operands(SPEC)
    out, _ = call(replace(SPEC, lse=False), sides, inputs, sinks, lengths)
    with pytest.raises(KernelError, match="lse=1"):
        out.sum().backward()


PROBLEM = AttentionProblem(
    batch=1, heads=8, groups=1, rows=512, keys=512, head_dim=64, value_dim=64, dtype="bfloat16",
    device="cuda", mask="given", dead="nan", is_trained=True, runs_kernels=True,
)  # fmt: skip


def test_what_is_decided():
    verdict = decide(PROBLEM, "unified")
    assert verdict.decision == "rewritten"
    assert "its gradients are made by kernels of our own" in verdict.reason
    assert decide(PROBLEM, "sdpa").code == "dead_rows"
    without = replace(PROBLEM, why_no_gradient="a gradient is wanted, and erfinv has none")
    verdict = decide(without, "unified")
    assert (verdict.decision, verdict.code) == ("kept", "no_own_kernel")
    assert "erfinv has none" in verdict.reason


def test_an_op_without_a_derivative_says_so():
    program = programs.program("matrix:float32", ("fmax.default", "%0", "@0"))
    assert "fmax.default has no derivative" in why_no_gradient(
        replace(SPEC, program=program), [False]
    )
    assert why_no_gradient(replace(SPEC, program=programs.ADDED), [True]) == ""
    assert "more than 128 columns" in why_no_gradient(replace(SPEC, head_dim=129), [])
    assert why_no_gradient(replace(SPEC, head_dim=128), []) == ""
    wide = replace(SPEC, head_dim=65, program=programs.ADDED)
    assert "of a mask is wanted" in why_no_gradient(wide, [True])


@pytest.mark.parametrize("name", ["added", "filled"])
def test_a_site_asks_for_what_its_masks_want(name, monkeypatch):
    """Rows that keep no key, and masks that are trained, as far as kernels run."""
    spelling, asked = REWRITTEN[name], []
    real = attention_gradients.why_no_gradient

    def noted(spec, of_inputs):
        asked.append((list(of_inputs), spec.lse))
        return real(spec, of_inputs)

    monkeypatch.setattr("overlapc.graphs.attention.problems.why_no_gradient", noted)
    sides = [t.requires_grad_() for t in plain()]
    more = [t.requires_grad_(t.is_floating_point()) for t in spelling.more()]
    done = rewrite(spelling.function, *sides, *more, softmax="unified")
    assert done.codes == ["=no_own_kernel"]
    assert "do not run on cpu" in done.sites[0].reason
    assert asked[0] == ([name == "added"], True)


@pytest.mark.parametrize(
    ("softmax", "code"), [("auto", "not_measured"), ("sdpa", "fused"), ("unified", "no_own_kernel")]
)
def test_training_in_a_dtype_without_kernels_is_left_to_torch(softmax, code):
    sides = [t.double().requires_grad_() for t in plain()]
    (site,) = rewrite(REWRITTEN["functional"].function, *sides, softmax=softmax).sites
    assert site.code == code
    assert ("none is generated for float64" in site.reason) == (softmax == "unified")
