"""Which keys and values the TMA unit may load, and what a kernel says to others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.descriptors import MOST_BYTES, descriptor, fits_tma
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.errors import KernelError
from overlapc.runtime.attention import kernels
from tests.codegen.attention_specs import BRAIN

SIZES = (2, 3, 5, 16)
HALF = torch.float16


def room(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes).to(HALF)


FITTING = {
    "dense": room(*SIZES),
    "rows of all heads": room(2, 5, 3, 16).transpose(1, 2),
    "a part of aligned rows": room(2, 3, 5, 24)[..., 8:],
    "columns that are not aligned": room(2, 3, 5, 24)[..., :13],
    "one column, of any stride": room(2, 3, 5, 16)[..., ::8][..., :1],
    "one head, of any stride": room(*SIZES).as_strided((2, 1, 5, 16), (240, 3, 16, 1)),
}
OTHERS = {
    "nothing": room(2, 3, 0, 16),
    "rows that are not aligned": room(2, 3, 5, 17)[..., :16],
    "a first element that is not aligned": room(2, 3, 5, 24)[..., 1:17],
    "elements apart": room(2, 3, 5, 32)[..., ::2],
    "heads that are one": room(2, 1, 5, 16).expand(*SIZES),
    "batches that are one": room(1, 3, 5, 16).expand(*SIZES),
    "heads a terabyte apart": torch.empty(0, dtype=HALF, device="meta").as_strided(
        (1, 2, 1, 8), (16, MOST_BYTES // 2, 8, 1)
    ),
    "heads that are not aligned": room(1000).as_strided(SIZES, (240, 81, 16, 1)),
}


@pytest.mark.parametrize("name", FITTING)
def test_what_the_unit_reads(name):
    """Mutant: strides of what is there but once are taken as torch says them."""
    side = FITTING[name]
    assert fits_tma(side)
    found = descriptor(side, 32, 64)
    assert found.shape == list(side.shape)
    assert found.block_shape == [1, 1, 32, 64]
    strides = zip(side.shape, side.stride(), found.strides, strict=True)
    assert all(given == own or size == 1 for size, own, given in strides)


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_does_not_read(name):
    """Mutants: each condition of ``fits_tma`` left out."""
    assert not fits_tma(OTHERS[name])


def test_a_kernel_refuses_what_the_unit_cannot_read():
    spec = replace(BRAIN, dtype="float16")
    kernel = build_attention(spec, AttentionTile(16, 16, 4, 1, by_tma=True))
    q, out = room(2, 3, 20, 16), room(2, 3, 20, 16)
    counter = torch.zeros(1, dtype=torch.int32)
    for k, v in ((FITTING["dense"], OTHERS["heads that are one"]),
                 (OTHERS["rows that are not aligned"], FITTING["dense"])):  # fmt: skip
        with pytest.raises(KernelError, match="TMA unit cannot read k and v as they lie"):
            kernel(q, k, v, out, redone=counter)


def test_a_call_is_planned_by_how_its_keys_and_values_lie(monkeypatch):
    """Mutant: values are not looked at."""
    monkeypatch.setattr(kernels, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(kernels, "interprets", pytest.fail)
    dense = [OnGPU(FITTING["dense"]), OnGPU(FITTING["rows of all heads"])]
    odd = OnGPU(OTHERS["elements apart"])
    assert kernels.tile_on(BRAIN, dense[0], dense[1]).by_tma
    for sides in ((dense[0], odd), (odd, dense[0])):
        assert not kernels.tile_on(BRAIN, *sides).by_tma


def test_what_a_calibration_tries_is_another_tile(monkeypatch):
    """Of what lies so that the device takes one. Mutants: values of their own are taken for those
    of keys; names of equal tiles; no error is caught."""
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 108)

    def beside(spec, rows, columns, architecture, **given):
        monkeypatch.setattr(kernels, "architecture", lambda device: architecture)
        query, key = (OnGPU(room(1, *sizes)) for sizes in ((128, rows, 16), (1, 64, columns)))
        return kernels.tiles_beside(spec, query, key, key, **given)

    wide = replace(BRAIN, head_dim=128, value_dim=128)
    assert beside(wide, 128, 128, "sm_90") == ["values_behind"]
    assert beside(wide, 128, 129, "sm_90") == []  # rows are not aligned
    assert beside(wide, 128, 128, "sm_80") == []
    assert beside(replace(wide, softmax="online"), 128, 128, "sm_90") == []
    assert beside(replace(wide, groups=8), 1, 128, "sm_90") == []
    latent = replace(BRAIN, head_dim=576, value_dim=512, groups=128)
    assert beside(latent, 1, 576, "sm_90", shares_values=True) == ["many_rows"]
    assert beside(latent, 1, 576, "sm_80", shares_values=True) == ["many_rows"]
    assert beside(latent, 1, 576, "sm_90") == []
    assert beside(replace(latent, groups=16), 1, 576, "sm_90", shares_values=True) == []
    assert beside(wide, 128, 128, "gfx1100") == []


class OnGPU:
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str):
        return getattr(self.tensor, name)
