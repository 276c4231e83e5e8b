"""Inside a graph that Inductor compiles, operands keep the order of their strides."""

from __future__ import annotations

import operator as python

import pytest
import torch
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass

from overlapc.runtime import callers
from tests.runtime.chains import MM, chain
from tests.targets import FAST_LINK

ops = torch.ops.overlapc


class InPlaceOfMm(CustomGraphPass):
    """Puts the op in the place of every ``mm``, as a pass does."""

    def __call__(self, graph):
        text = chain("gemm_all_reduce", MM, FAST_LINK).text()
        for node in list(graph.nodes):
            if node.target is not torch.ops.aten.mm.default:
                continue
            with graph.inserting_before(node):
                args = (list(node.args), 1, [], [], "0", text)
                op = graph.call_function(ops.gemm_all_reduce.default, args)
                op.meta["val"] = [node.meta["val"]]
                item = graph.call_function(python.getitem, (op, 0))
                item.meta = dict(node.meta)
            node.replace_all_uses_with(item)
            graph.erase_node(node)

    def uuid(self):
        return None  # never cached


def transposed_weight(x, w):
    return x @ w.t()


def computed_weight(x, w):
    return (x * 2) @ torch.cat([w[:5], w[5:]]).t()


def permuted_rows(x, w):
    return x.t().contiguous().t() @ (w + 1).t()


@pytest.mark.parametrize("compute", [transposed_weight, computed_weight, permuted_rows])
def test_operands_keep_the_order_of_their_strides(compute, fake_group, monkeypatch):
    seen, original = [], callers.Caller.__call__

    def spied(self, group, operands, *sizes):
        seen.append([tensor.stride() for tensor in operands])
        return original(self, group, operands, *sizes)

    monkeypatch.setattr(callers.Caller, "__call__", spied)
    x, w = torch.randn(16, 8), torch.randn(12, 8)
    with config.patch(post_grad_custom_post_pass=InPlaceOfMm()), torch.no_grad():
        found = torch.compile(compute)(x, w)
    torch.testing.assert_close(found, compute(x, w))
    ((left, right),) = seen
    assert right[0] == 1  # a linear layer's weight is column-major
    assert (left[0] == 1) == (compute is permuted_rows)
