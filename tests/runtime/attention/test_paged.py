"""Attention over pages, against float64: gathered by torch, and read by kernels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overlapc.errors import KernelError
from overlapc.runtime.attention import paged
from overlapc.runtime.ops import calls_of
from tests.runtime.attention.paged_cases import Case, error, operands

CASES = [
    Case(),
    Case(rows=3, groups=1, window=20),
    Case(value_dim=24),
    Case(dtype="bfloat16", narrow=True),
    Case(lengths=(0, 33)),
    Case(rows=3, lengths=(2, 33)),
    Case(dim=48, value_dim=32, is_latent=True),
    Case(dim=48, value_dim=32, is_latent=True, dtype="bfloat16", narrow=True),
]
SLOW = [pytest.param(case, marks=pytest.mark.long) for case in CASES[1:]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_gathers_pages(case):
    before = calls_of(paged.SITE)["torch"]
    assert error(case) < case.allowed
    assert calls_of(paged.SITE)["torch"] == before + 1


@pytest.mark.parametrize("case", [CASES[0], *SLOW], ids=str)
def test_a_kernel_reads_them(interpreted, case):
    found, calls = interpreted("paged_graphs.run", case)
    assert found < case.allowed
    what = "decode" if case.rows == 1 else "few rows"
    assert list(calls) == [f"zero, {what}, 2 splits"]


def test_a_page_that_the_table_does_not_name_is_not_read():
    """What the mutant reads is NaN: a table that is off by one page."""
    case = Case()
    given = operands(case)
    given["table"] = (given["table"] + 1) % given["keys"].shape[0]
    with pytest.raises(AssertionError):
        assert error(case, given) < case.allowed


def test_in_a_compiled_graph_the_length_moves_without_another():
    given = operands(Case())
    traced = []

    def backend(module, inputs):
        traced.append(module)
        return module

    compiled = torch.compile(
        lambda lengths: paged.paged_attention(**{**given, "lengths": lengths}),
        backend=backend, fullgraph=True,
    )  # fmt: skip
    for lengths in ((40, 20), (41, 21), (8, 5)):
        tensor = torch.tensor(lengths, dtype=torch.int32)
        torch.testing.assert_close(
            compiled(tensor), paged.paged_attention(**{**given, "lengths": tensor})
        )
    assert len(traced) == 1


def test_its_op_is_one():
    op, seen = torch.ops.overlapc.paged_attention.default, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend([args] if func is op else [])
            return func(*args, **(kwargs or {}))

    with Watch():
        paged.paged_attention(**operands(Case()))
    torch.library.opcheck(op, seen[0])


@dataclass(frozen=True)
class Wrong:
    """What makes a call none, and what the error says."""

    change: dict
    says: str


SIDES = ("query", "keys", "values")
WRONG = (
    Wrong({"query": lambda t: t[0]}, "query has 3 dimensions"),
    Wrong({"keys": lambda t: t.tolist()}, "keys is a list, no tensor"),
    Wrong({"query": lambda t: t[:, :3]}, "no multiple of 2"),
    Wrong({"query": lambda t: t[:, :0]}, "0 heads of queries"),
    Wrong({"values": lambda t: t[:-1]}, r"values are \[10, 2, 16, 16\] beside keys"),
    Wrong({"values": lambda t: t[:, :1]}, r"values are \[11, 1, 16, 16\] beside keys"),
    Wrong({"values": lambda t: t.half()}, "values are of torch.float16"),
    Wrong({"query": lambda t: t.half()}, "keys are of float32 beside queries of float16"),
    Wrong({name: torch.Tensor.double for name in SIDES}, "queries are of float64"),
    Wrong({"keys": lambda t: torch.cat((t, t), -1)}, "keys have 32 columns"),
    Wrong({"keys": lambda t: t[..., 1:]}, "keys have 15 columns"),
    Wrong({"keys": lambda t: t[:, :, :12], "values": lambda t: t[:, :, :12]}, "holds 12 keys"),
    Wrong({name: lambda t: t[..., :0] for name in SIDES}, "query has 0 columns"),
    Wrong({name: lambda t: t.repeat(1, 1, 1, 37) for name in SIDES}, "query has 592 columns"),
    Wrong(
        {"keys": lambda t: t[..., :4], "values": lambda t: t[..., :12]},
        "keys of 16 columns begin with values of 12",
    ),
    Wrong({"scale": lambda _: float("nan")}, "cannot be multiplied by nan"),
    Wrong({"table": lambda t: t.long()}, "table is int64"),
    Wrong({"table": lambda t: t[0]}, r"table is \[4\]"),
    Wrong({"table": lambda t: t[:, :0]}, r"table is \[2, 0\]"),
    Wrong({"table": lambda t: -1 - t}, "a sequence lies in page -4 of 11"),
    Wrong({"table": lambda t: t + 11}, "a sequence lies in page 14 of 11"),
    Wrong({"table": lambda t: t.to("meta")}, "table is on meta"),
    Wrong({"lengths": lambda t: t[:1]}, "lengths is"),
    Wrong({"lengths": lambda t: -t}, "a sequence has -50 keys"),
    Wrong({"lengths": lambda t: t + 15}, "a sequence has 65 keys, and its pages 64"),
    Wrong({"window": lambda _: -1}, "cannot see -1 keys before its own"),
    Wrong({"window": lambda _: 1.5}, "cannot see 1.5 keys before its own"),
    Wrong({"window": lambda _: True}, "cannot see True keys before its own"),
    Wrong({"scale": lambda _: "1"}, "cannot be multiplied by '1'"),
    Wrong({"k_scale": lambda _: torch.rand(2)}, "v_scale is promised"),
    Wrong({name: lambda _: torch.rand(3) for name in ("k_scale", "v_scale")}, "is float32.3"),
    Wrong({"softmax": lambda _: "none"}, "has softmax 'none'"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.says)
@pytest.mark.parametrize("launches", [False, True])
def test_what_is_no_call_is_an_error(wrong, launches, monkeypatch):
    """Before either way is chosen: without its own check each has errors of its own or none, and
    a kernel reads what is not there."""

    def run(kernel, operand, launch):
        raise AssertionError("a kernel was asked")

    if launches:
        monkeypatch.setattr(paged._kernels, "run", run)
    named = {"softmax": "unified", "scale": None, "k_scale": None, "v_scale": None}
    given = {**named, **operands(Case())}
    for name, change in wrong.change.items():
        given[name] = change(given[name])
    with pytest.raises(KernelError, match=wrong.says) as raised:
        paged.paged_attention(**given)
    assert raised.value.where.startswith("paged_attention, ") or "softmax" in wrong.change
    assert "attention dtype=" not in str(raised.value), "a specification says nothing to a caller"


def test_scores_may_be_multiplied_by_a_whole_number():
    given = operands(Case())
    found, wanted = (paged.paged_attention(**{**given, "scale": scale}) for scale in (1, 1.0))
    assert torch.equal(found, wanted)


STRIDED = {
    "table": lambda t: torch.cat((t, t + 10**6), 1)[:, : t.shape[1]],
    "lengths": lambda t: torch.stack((t, t + 1), 1)[:, 0],
    "query": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "keys": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("name", STRIDED)
def test_operands_may_have_any_strides(name):
    given = operands(Case())
    given[name] = STRIDED[name](given[name])
    assert error(Case(), given) < Case().allowed


def test_a_kernel_is_given_tables_without_gaps(monkeypatch):
    """The mutant that leaves them as they are, which a kernel refuses."""
    seen = []

    def run_decode(*args, **named):
        seen.append(named)
        return 1

    monkeypatch.setattr(paged, "run_decode", run_decode)
    monkeypatch.setattr(paged._kernels, "run", lambda kernel, operand, launch: launch())
    given = operands(Case())
    given |= {name: STRIDED[name](given[name]) for name in ("table", "lengths")}
    paged.paged_attention(**given)
    assert all(seen[0][name].is_contiguous() for name in ("table", "lengths"))


def test_of_nothing_is_nothing_and_without_keys_zeros():
    """The mutants: a call of no sequence that asks for its longest, and pages of a cache that has
    none yet."""
    given = operands(Case())
    nobody = {name: given[name][:0] for name in ("query", "table", "lengths")}
    assert paged.paged_attention(**{**given, **nobody}).shape == (0, 4, 1, 16)
    no_rows = paged.paged_attention(**{**given, "query": given["query"][:, :, :0]})
    assert no_rows.shape == (2, 4, 0, 16)
    no_pages = {name: given[name][:0] for name in ("keys", "values")}
    empty = {**given, **no_pages, "lengths": torch.zeros(2, dtype=torch.int32)}
    given["values"].fill_(torch.nan)
    assert paged.paged_attention(**empty).count_nonzero() == 0
