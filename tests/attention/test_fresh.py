"""What is taken for new memory shares none with an operand, and what torch marks is told apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from overlapc.graphs.attention.reading.fresh import MADE_OF_OTHERS, _is_marked_new, is_fresh
from overlapc.graphs.attention.reading.spelling import read_call

X = torch.randn(4, 4)
KEPT = torch.ones(4, 4, dtype=torch.bool)

CALLS = {
    "matmul": lambda: torch.matmul(X, X),
    "einsum": lambda: torch.einsum("ij,ij->ij", X, X),
    "linear": lambda: F.linear(X, X),
    "inner": lambda: torch.inner(X, X),
    "tensordot": lambda: torch.tensordot(X, X, 0),
    "softmax": lambda: torch.softmax(X, -1),
    "softmin": lambda: F.softmin(X, -1),
    "log_softmax": lambda: torch.log_softmax(X, -1),
    "layer_norm": lambda: F.layer_norm(X, (4,)),
    "rms_norm": lambda: F.rms_norm(X, (4,)),
    "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(X, X, X),
    "where": lambda: torch.where(KEPT, X, X),
    "max": lambda: torch.max(X, X),
    "tensor": lambda: torch.tensor(X.tolist()),
    "new_tensor": lambda: X.new_tensor(X.tolist()),
    "and_": lambda: KEPT & KEPT,
    "or_": lambda: KEPT | KEPT,
    "xor": lambda: KEPT ^ KEPT,
    "invert": lambda: ~KEPT,
}
"""Each with operands of which it could give one as it is."""


@pytest.mark.parametrize("name", sorted(MADE_OF_OTHERS))
def test_what_the_list_has_gives_new_memory(name):
    found = CALLS[name]().untyped_storage()._cdata
    assert found not in (X.untyped_storage()._cdata, KEPT.untyped_storage()._cdata)


def _unary() -> Iterator[str]:
    """Ops of torch that take one tensor and nothing else that has no default."""
    for name in dir(torch):
        packet = getattr(torch.ops.aten, name, None)
        if not isinstance(packet, torch._ops.OpOverloadPacket) or "default" not in dir(packet):
            continue
        first, *rest = packet.default._schema.arguments or [None]
        is_of_one = first is not None and all(one.has_default_value() for one in rest)
        if is_of_one and str(first.type) == "Tensor" and not name.endswith("_"):
            yield name


def test_no_op_of_one_tensor_that_is_taken_for_new_gives_its_operand():
    """Mutants: marks are not read, or ops that are made of others are taken for new."""
    asked = 0
    for name in _unary():
        if not _is_marked_new(name) or name == "cholesky":  # it warns
            continue
        for operand in (torch.rand(4, 4), torch.ones(4, 4, dtype=torch.int64)):
            try:
                found = getattr(torch, name)(operand)
            except (RuntimeError, TypeError, NotImplementedError, AttributeError):
                continue
            parts = found if isinstance(found, tuple | list) else [found]
            tensors = [one for one in parts if isinstance(one, torch.Tensor)]
            own = operand.untyped_storage()._cdata
            assert all(one.untyped_storage()._cdata != own for one in tensors), name
            asked += len(tensors)
    assert asked > 100


@pytest.mark.parametrize(
    "name", ["exp", "exp2", "log", "logsumexp", "amax", "reciprocal", "clamp", "nan_to_num", "tril"]
)
def test_schemas_tell_what_is_new(name):
    assert _is_marked_new(name)


@pytest.mark.parametrize(
    "name",
    ["view", "expand", "transpose", "to", "contiguous", "reshape", "detach", "squeeze", "split",
     "dropout", "native_dropout", "pad", "getitem", "float", "lift", "chunk",
     "unsafe_split", "unsafe_split_with_sizes"],
)  # fmt: skip
def test_what_may_be_a_view_is_not_taken_for_new(name):
    assert not _is_marked_new(name)
    assert name not in MADE_OF_OTHERS


@pytest.mark.parametrize(
    ("function", "is_new"),
    [
        (lambda x: torch.einsum("ij->ji", x), False),
        (lambda x: torch.einsum("ij,jk->ik", x, x), True),
        (lambda x: torch.einsum("ij->ji", [x]), False),
    ],
)
def test_an_einsum_of_one_operand_may_be_a_view(function, is_new):
    found = []

    def backend(module, inputs):
        found.extend(read_call(node) for node in module.graph.nodes)
        return module

    torch._dynamo.reset()
    torch.compile(function, backend=backend)(X)
    assert [is_fresh(call) for call in found if call and call.name == "einsum"] == [is_new]
