"""Attention over pages, against float64: gathered by torch, and read by kernels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overlapc.errors import KernelError
from overlapc.runtime import paged
from overlapc.runtime.ops import calls_of
from tests.codegen.conftest import interpreted  # noqa: F401
from tests.runtime.paged_cases import Case, error, operands


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(rows=3, groups=1, window=20),
        Case(value_dim=24),
        Case(dtype="bfloat16", narrow=True),
        Case(lengths=(0, 33)),
        Case(dim=48, value_dim=32, is_latent=True),
        Case(dim=48, value_dim=32, is_latent=True, dtype="bfloat16", narrow=True),
    ],
    ids=str,
)
def test_torch_gathers_pages(case):
    before = calls_of(paged.SITE)["torch"]
    assert error(case) < case.allowed
    assert calls_of(paged.SITE)["torch"] == before + 1


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        *(
            pytest.param(case, marks=pytest.mark.long)
            for case in (
                Case(rows=3, groups=1, window=20),
                Case(value_dim=24),
                Case(dtype="bfloat16", narrow=True),
                Case(lengths=(0, 33)),
                Case(dim=48, value_dim=32, is_latent=True),
                Case(dim=48, value_dim=32, is_latent=True, dtype="bfloat16", narrow=True),
            )
        ),
    ],
    ids=str,
)
def test_a_kernel_reads_them(interpreted, case):  # noqa: F811
    found, calls = interpreted("paged_graphs.run", case)
    assert found < case.allowed
    assert list(calls) == ["zero, decode, 2 splits"]


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


WRONG = (
    Wrong({"table": lambda t: t.long()}, "table is int64"),
    Wrong({"lengths": lambda t: t[:1]}, "lengths is"),
    Wrong({"query": lambda t: t[:, :3]}, "no multiple of 2"),
    Wrong({"keys": lambda t: t[:, :, :12], "values": lambda t: t[:, :, :12]}, "power of two"),
    Wrong({"softmax": lambda _: "none"}, "has softmax 'none'"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.says)
def test_what_is_no_call_is_an_error(wrong):
    given = {"softmax": "unified", **operands(Case())}
    for name, change in wrong.change.items():
        given[name] = change(given[name])
    with pytest.raises(KernelError, match=wrong.says):
        paged.paged_attention(**given)
