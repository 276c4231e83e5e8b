"""Under option ``verify`` an op stands before every collective that stays, and Inductor keeps it.

What the op says of sizes that differ is tested on real ranks:
``tests/runtime/ranks/test_verified.py``.
"""

from __future__ import annotations

import operator
import re

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import fx

import overlapc.backend as backend_module
from overlapc.graphs.calls import read_call
from overlapc.graphs.collectives import Refusal, collective_starts, sent_by
from overlapc.options import Options
from overlapc.passes import PIPELINE
from overlapc.passes.base import Compilation
from overlapc.passes.verify_sizes import VerifySizes
from tests.passes import lockstep
from tests.passes.emission import calls, generated
from tests.passes.test_order_collectives import CONFIGURED, MIXED, all_reduce, gather
from tests.targets import SLOW_LINK

c10d = torch.ops._c10d_functional
VERIFYING = {"target": SLOW_LINK, "verify": True}


@pytest.fixture(autouse=True)
def own_caches(fake_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def waited(started):
    return torch.utils._pytree.tree_map(functional.wait_tensor, started)


def name():
    return dist.group.WORLD.group_name


def inputs():
    return [torch.randn(shape) for shape in ((512, 64), (64, 128), (512, 1024), (512, 8))]


# --- which collectives, and what is said of them ---


def uneven(x):
    return functional.all_to_all_single(x, [100, 412], [500, 12], dist.group.WORLD)


STARTS = {
    "all_reduce max": lambda x: c10d.all_reduce(x, "max", name()),
    "reduce_scatter_tensor sum 2": lambda x: c10d.reduce_scatter_tensor(x, "sum", 2, name()),
    "all_gather_into_tensor 2": lambda x: c10d.all_gather_into_tensor(x, 2, name()),
    "all_to_all_single": lambda x: c10d.all_to_all_single(x, [100, 412], [500, 12], name()),
    "broadcast 1": lambda x: c10d.broadcast(x, 1, name()),
    "all_reduce_coalesced sum": lambda x: c10d.all_reduce_coalesced([x, x[1:]], "sum", name()),
    "all_gather_into_tensor_coalesced 2": lambda x: c10d.all_gather_into_tensor_coalesced(
        [x, x[1:]], 2, name()
    ),
    "reduce_scatter_tensor_coalesced avg 2": lambda x: c10d.reduce_scatter_tensor_coalesced(
        [x, x[:2]], "avg", 2, name()
    ),
    "all_gather_into_tensor_out 2": lambda x: c10d.all_gather_into_tensor_out(
        x, 2, name(), out=x.new_empty(1024, 64)
    ),
    "shard_dim_alltoall 0 1": lambda x: torch.ops._dtensor.shard_dim_alltoall(x, 0, 1, name()),
}


@pytest.mark.parametrize("said", STARTS)
def test_every_collective_of_c10d_is_read(said):
    module = lockstep.traced(lambda x: waited(STARTS[said](x.sin())), torch.randn(512, 64))
    (start,) = collective_starts(module.graph)
    call = read_call(start)
    assert not isinstance(call, Refusal)
    assert call.text == f"torch's {said}"
    assert len(call.sent) == (2 if "coalesced" in said else 1)
    assert call.group == name()
    rows = ((100, 412), (500, 12)) if said == "all_to_all_single" else ((), ())
    assert (call.receives, call.sends) == rows
    verified(module)
    (before, after) = collective_starts(module.graph)
    assert after is start
    assert before.target is torch.ops.overlapc.verify_sizes.default
    assert tuple(before.all_input_nodes) == call.sent
    copies = [node for node in before.users if node.target is operator.getitem]
    assert tuple(start.all_input_nodes[: len(call.sent)]) == tuple(copies)
    assert len(copies) == len(call.sent)


def verified(module):
    compilation = Compilation(
        Options(verify=True), "inference", lambda device, group: SLOW_LINK, "graph"
    )
    VerifySizes().apply(module.graph, compilation)
    module.graph.lint()


def of_one_pair(graph, x):
    return graph.call_function(c10d.isend.default, (x, 1, 0, name()))


def of_a_computed_group(graph, x):
    return graph.call_function(c10d.all_reduce.default, (x, "sum", x))


def in_place(graph, x):
    return graph.call_function(c10d.all_reduce_.default, (x, "sum", name()))


@pytest.mark.parametrize("start", [of_one_pair, of_a_computed_group, in_place])
def test_what_is_not_compared_is_said_and_left(start):
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(start(graph, x))
    before = str(graph)
    with pytest.warns(
        UserWarning, match=r"are not compared: (Not every rank|The process group|It writes)"
    ):
        verified(fx.GraphModule(torch.nn.Module(), graph))
    assert str(graph) == before


def mixed(x, w, big, v):
    """One of each: overlapped, refused, hidden."""
    rows = all_reduce(x @ w).relu()
    kept = uneven(x.sin())
    return rows.sum() + gather(v.sin()).sum(), kept


def test_golden(explained, golden):
    with torch.no_grad():
        result = explained(mixed, *inputs(), **VERIFYING)
    text = re.sub(r"'[^']*(\(test_verify_sizes\.py):\d+\)'", r"'\1)'", result.text())
    golden(re.sub(r"(300\.0), '\w+', '\w+'", r"\1, '*', '*'", text))


def test_without_the_option_nothing_is_put_in(explained):
    with torch.no_grad():
        result = explained(mixed, *inputs(), target=SLOW_LINK)
    assert not any(
        "overlapc.verify_sizes" in text for pair in result.graphs.values() for text in pair
    )


def test_what_stands_before_a_collective_does_not_count_as_one():
    module = lockstep.traced(lambda x: all_reduce(x.sin()), torch.randn(8, 8))
    before = sent_by(module.graph)
    verified(module)
    assert sent_by(module.graph) == before
    assert [len(sent) for sent in before.values()] == [1]


# --- Inductor neither moves nor drops it ---


def emitted(function, rows, config="default"):
    options = {**VERIFYING, "inductor": CONFIGURED[config]}
    compiled = torch.compile(function, backend="overlapc", options=options)
    values = inputs()
    values[2:] = [torch.randn(rows, 1024), torch.randn(rows, 8)]
    with torch.no_grad():
        found = calls(generated(compiled, values))
    return [call for call in found if call not in ("mm", "wait")]


def unread(x, w, big, v):
    kept = v + 1
    dist.all_reduce(kept)
    return x.sum()


CASES = {**MIXED, "unread": (unread, ["all_reduce"]), "mixed": (mixed, None)}


def is_verified(found, wanted):
    """Whether each is sent right after it was compared, ours by itself, as the program has them."""
    if wanted is None:
        wanted = [call for call in found if call != "verifier"]
    return found == [
        one for call in wanted for one in (["ours"] if call == "ours" else ["verifier", call])
    ]


def matrix():
    """Every case under every configuration is for long runs; some of each for all."""
    for config in CONFIGURED:
        for case in CASES:
            for rows in (512, 4096):
                quick = case == "plain_ones" or (case, config) in QUICK
                quick &= config == "default" or rows == 4096
                marks = () if quick else pytest.mark.long
                yield pytest.param(case, config, rows, marks=marks, id=f"{case}-{config}-{rows}")


SINKS = "reorder_compute_for_overlap"
QUICK = [("unread", "default"), ("mixed", "default"), ("scattered_first", SINKS)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("case", "config", "rows"), matrix())
def test_the_code_compares_before_it_sends(case, config, rows):
    function, wanted = CASES[case]
    found = emitted(function, rows, config)
    assert "verifier" in found or wanted == ["ours"] * 3
    assert is_verified(found, wanted if config == "default" else None)


def test_what_ties_it_is_missed(monkeypatch):
    """The mutants: the program's order without the last pass, and a copy that nothing reads."""
    function, wanted = CASES["plain_ones"]
    others = tuple(one for one in PIPELINE if one.name != "order_collectives")
    with monkeypatch.context() as patch:
        patch.setattr(backend_module, "PIPELINE", others)
        assert not is_verified(emitted(function, 4096), wanted)
    monkeypatch.setattr(fx.Node, "replace_input_with", lambda self, old, new: None)
    assert not is_verified(emitted(CASES["scattered_first"][0], 512, SINKS), None)
