"""What Inductor fuses around a collective it still fuses where we rewrote the chain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._inductor import metrics

from tests.passes.catalogue import COLUMNS, all_gather, all_reduce, weight, x3
from tests.targets import SLOW_LINK


def residual_norm(x, w, r, scale):
    """What follows a row-parallel layer in Llama."""
    y = all_reduce(F.linear(x, w)) + r
    return F.rms_norm(y, (COLUMNS,), scale).bfloat16(), y


def gate_up(x, gate, up):
    """What follows a gathered column-parallel pair."""
    full = all_gather(x, 1)
    return F.silu(F.linear(full, gate)) * F.linear(full, up)


CASES = {
    "residual_norm": (
        residual_norm,
        lambda: (x3(), weight(), torch.randn(4, 128, COLUMNS), torch.randn(COLUMNS)),
    ),
    "gate_up": (gate_up, lambda: (x3(), weight(), weight())),
}


def kernels(function, inputs, **how):
    """How many kernels Inductor generates."""
    torch._dynamo.reset()
    metrics.reset()
    with torch.no_grad():
        torch.compile(function, **how)(*inputs)
    return metrics.generated_kernel_count


@pytest.mark.parametrize("name", CASES)
def test_no_more_kernels_than_inductor(name, fake_group, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    function, inputs = CASES[name]
    values = inputs()
    plain = kernels(function, values, backend="inductor")
    ours = kernels(function, values, backend="overlapc", options={"target": SLOW_LINK})
    assert 0 < ours <= plain
