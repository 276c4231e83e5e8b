"""The backend itself: a compiled model, its report, its caches; explain, and gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import overlapc
from overlapc.graphs.attention import finding, layouts, problems
from overlapc.planning.attention import by_rows
from tests.attention.catalogue import (
    REWRITTEN,
    SEEN,
    causal_by_indices,
    functional,
    grouped,
    in_checkpoint,
    in_selective_checkpoint,
    keep,
    operators,
    plain,
    square,
)
from tests.attention.rewriting import rewrite

TWO_RUNS = """
import json, sys, torch, overlapc
from torch._dynamo.utils import counters
from tests.attention.catalogue import plain, functional
torch.manual_seed(0)
inputs = plain()
compiled = torch.compile(functional, backend="overlapc", options={"softmax": sys.argv[1]})
found = compiled(*inputs)
sites = [(s.kind, s.decision, s.id) for s in overlapc.report().sites]
wanted = functional(*(t.double() for t in inputs))
hits = counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
print(json.dumps([sites, (found - wanted).abs().max().item(), hits]))
"""


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def run_twice(choice, folder):
    """Sites, error and cache hits of a process with the caches that ``folder`` holds."""
    import json

    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWO_RUNS, choice],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_caches_keep_what_is_rewritten_apart(tmp_path):
    cold, warm, off = (run_twice(choice, tmp_path) for choice in ("sdpa", "sdpa", "off"))
    assert [site[:2] for site in cold[0]] == [["attention", "rewritten"]]
    assert warm[0] == cold[0]
    assert [site[:2] for site in off[0]] == [["attention", "kept"]]
    assert (cold[2], off[2]) == (0, 0)
    assert warm[2] > 0
    assert max(run[1] for run in (cold, warm, off)) < 1e-6


def test_compiled_with_gradients():
    torch.manual_seed(0)
    leaves = [t.requires_grad_() for t in square()]
    compiled = torch.compile(causal_by_indices, backend="overlapc", options={"softmax": "sdpa"})
    weights = torch.randn(leaves[0].shape)
    found = torch.autograd.grad((compiled(*leaves) * weights).sum(), leaves)
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    wanted = torch.autograd.grad((causal_by_indices(*doubles) * weights).sum(), doubles)
    assert all((a - b).abs().max() < 5e-6 for a, b in zip(found, wanted, strict=True))
    site = overlapc.report().sites[-1]
    assert (site.kind, site.decision, site.graph) == ("attention", "rewritten", "forward")


def test_a_selective_policy_sees_the_attention_as_one_op():
    """The mutant does not look into bodies of checkpoints: the policy is asked about bmm."""
    torch.manual_seed(0)
    SEEN.clear()
    leaves = [t.requires_grad_() for t in plain()]
    options = {"softmax": "sdpa"}
    compiled = torch.compile(in_selective_checkpoint, backend="overlapc", options=options)
    result = compiled(*leaves)
    weights = torch.randn(result.shape)
    found = [result, *torch.autograd.grad((result * weights).sum(), leaves)]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    wanted = operators(*doubles)
    wanted = [wanted, *torch.autograd.grad((wanted * weights).sum(), doubles)]
    assert all((a - b).abs().max() < 5e-6 for a, b in zip(found, wanted, strict=True))
    assert [s.code for s in overlapc.report().sites[-1:]] == ["fused"]
    seen = {name for _, name in SEEN}
    assert any("_scaled_dot_product_" in name for name in seen), seen
    assert not any("bmm" in name or "softmax" in name for name in seen), seen


def test_explain_builds_nothing_and_says_the_same():
    operands = [t.requires_grad_() for t in plain()]
    report = overlapc.explain(in_checkpoint, {"softmax": "sdpa"})(*operands)
    assert [(s.decision, s.code, s.graph) for s in report.sites] == [
        ("rewritten", "fused", "forward")
    ]
    assert "2x4x6x17x8 float32" in report.sites[0].shape
    assert "attention" in str(report)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_softmax_over_others_than_keys_gives_what_eager_does(dim):
    """Inductor's own patterns take it for one over keys. Mutant: they are left on."""

    def over(q, k, v):
        return (q @ k.mT / 4).softmax(dim) @ v

    inputs = tuple(torch.randn(3, 1, 4, 16, 16))
    with torch.no_grad():
        found = torch.compile(over, backend="overlapc")(*inputs)
    assert overlapc.report().sites[-1].code == "softmax_dim"
    torch.testing.assert_close(found, over(*inputs))


def test_what_explain_calls_is_not_counted(monkeypatch):
    """Of tensors that are real, in a program that is compiled too. Mutant: it is."""

    def causal(q, k, v):  # a causal attention of so many rows is put in as our op
        later = torch.ones(384, 384, dtype=torch.bool).triu(1)
        return (q @ k.mT * 0.25).masked_fill(later, -torch.inf).softmax(-1) @ v

    monkeypatch.setattr(by_rows, "has_heads", lambda *counts: True)  # of any machine
    monkeypatch.setattr(by_rows, "LEAST_DIM", 16)
    inputs = tuple(torch.randn(3, 1, 12, 384, 16))
    with torch.no_grad():
        compiled = torch.compile(causal, backend="overlapc", options={"softmax": "sdpa"})
        compiled(*inputs)
        site = overlapc.report().sites[-1]
        assert (site.code, site.calls) == ("by_rows", {"torch": 1})
        (again,) = overlapc.explain(causal, options={"softmax": "sdpa"})(*inputs).sites
        assert again.id == site.id
    torch._dynamo.reset()  # a report is of all that was compiled, and keeps it
    assert overlapc.report().sites[-1].calls == {"torch": 1}


def test_a_literal_tensor_in_the_model_can_be_explained():
    """Its constant is real among fakes, and the graph is copied."""

    def function(x):
        return x + torch.tensor(0.5)

    assert overlapc.explain(function)(torch.randn(4)).sites == []


def test_operands_of_dtensor_are_refused(fake_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (2,))
    operands = [DTensor.from_local(t, mesh, [Shard(1)], run_check=False) for t in plain()]
    done = rewrite(functional, *operands)
    assert done.codes == ["!tensor_subclass"]
    assert "Its operands are of DTensor" in done.sites[0].reason
    assert done.after == done.before

    def on_parts(*sides):
        """As the reason says it: each rank has some of the heads."""
        found = functional(*(side.to_local() for side in sides))
        return DTensor.from_local(found, mesh, [Shard(1)], run_check=False)

    assert rewrite(on_parts, *operands).codes == ["fused"]


def test_elsewhere_than_on_processors_a_mask_keeps_heads_repeated_and_dead_rows_stay(monkeypatch):
    monkeypatch.setattr(layouts, "planned_device", lambda device: device)
    monkeypatch.setattr(problems, "planned_on", lambda device: device)
    groups, dead = REWRITTEN["fused_repeated"], REWRITTEN["filled"]
    operands = [t.to("meta") for t in grouped()]
    assert rewrite(groups.function, *operands, *meta(keep)).codes == ["=fused_already"]
    assert rewrite(dead.function, *meta(plain), *meta(keep)).codes == ["!dead_rows"]
    assert rewrite(REWRITTEN["interleaved"].function, *operands).codes == ["fused"]


def meta(make):
    return [t.to("meta") for t in make()]


def test_a_fault_leaves_the_program_as_it_was(monkeypatch):
    def fails(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(finding, "Versions", fails)
    torch.manual_seed(0)
    inputs = plain()
    sites = overlapc.explain(functional, {"softmax": "sdpa"})(*inputs).sites
    # Without a view of the whole graph there is no site to tell of: the log does.
    assert sites == []
    found = torch.compile(functional, backend="overlapc", options={"softmax": "sdpa"})(*inputs)
    torch.testing.assert_close(found, functional(*inputs))
