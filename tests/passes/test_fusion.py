"""What Inductor fuses around a collective it still fuses where we rewrote the chain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._inductor import metrics

from overlapc.graphs.adding import add_call
from overlapc.graphs.collectives import is_ours
from overlapc.graphs.replacing import replace_chain
from overlapc.passes import overlap_chains
from tests.passes.catalogue import COLUMNS, all_gather, all_reduce, weight, x3
from tests.passes.emission import generated
from tests.targets import SLOW_LINK


def residual_norm(x, w, r, scale):
    """What follows a row-parallel layer in Llama."""
    y = all_reduce(F.linear(x, w)) + r
    return F.rms_norm(y, (COLUMNS,), scale).bfloat16(), y


def quantised_norm(x, w, r, scale):
    """LayerNorm, and what a GEMM in eight bits would be given."""
    y = F.layer_norm(all_reduce(F.linear(x, w)) + r, (COLUMNS,))
    return (y * scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def gate_up(dim):
    """What follows a gathered column-parallel pair."""

    def gathered(x, gate, up):
        full = all_gather(x, dim)
        return F.silu(F.linear(full, gate)) * F.linear(full, up)

    return gathered


CASES = {
    "residual_norm": (
        residual_norm,
        lambda: (x3(), weight(), torch.randn(4, 128, COLUMNS), torch.randn(COLUMNS)),
    ),
    "quantised_norm": (
        quantised_norm,
        lambda: (x3(), weight(), torch.randn(4, 128, COLUMNS), torch.randn(())),
    ),
    "gate_up_of_batches": (gate_up(0), lambda: (x3(), weight(), weight())),
    # Inductor copies what is gathered into its order, and the op does not: one kernel fewer.
    "gate_up_of_rows": (gate_up(1), lambda: (x3(), weight(), weight())),
}


def kernels(function, inputs, **how):
    """How many kernels Inductor writes; they are not built."""
    metrics.reset()
    with torch.no_grad():
        generated(torch.compile(function, **how), inputs)
    return metrics.generated_kernel_count


@pytest.mark.parametrize("name", CASES)
def test_no_more_kernels_than_inductor(name, fake_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    function, inputs = CASES[name]
    values = inputs()
    plain = kernels(function, values, backend="inductor")
    ours = kernels(function, values, backend="overlapc", options={"target": SLOW_LINK})
    assert 0 < ours <= plain


def replaced_opaquely(graph, chain, spec, packed=None):
    """As ``replace_chain``, but results go through a tensor that an opaque op waits for."""
    replace_chain(graph, chain, spec, packed)
    neg, wait = torch.ops.aten.neg.default, torch.ops._c10d_functional.wait_tensor.default
    for result in [user for node in graph.nodes if is_ours(node) for user in node.users]:
        readers, value = list(result.users), result
        for op in (neg, wait, neg):
            with graph.inserting_before(value.next):
                value = add_call(graph, op, (value,), like=result)
        for reader in readers:
            reader.replace_input_with(result, value)


@pytest.mark.parametrize("name", ["residual_norm", "quantised_norm", "gate_up_of_batches"])
def test_a_fusion_that_is_lost_shows(name, fake_group, tmp_path, monkeypatch):
    monkeypatch.setattr(overlap_chains, "replace_chain", replaced_opaquely)
    with pytest.raises(AssertionError, match=r"\d+ <= \d+"):
        test_no_more_kernels_than_inductor(name, fake_group, tmp_path, monkeypatch)
