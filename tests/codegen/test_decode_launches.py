"""Launches of decode kernels: again they are given what they would be given anew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.codegen import relaunching
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import DecodeKernel, build_decode
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.errors import KernelError
from tests.codegen import score_programs as programs
from tests.codegen.attention_specs import BRAIN
from tests.runtime.linear.test_launches import Kernel, said

SPEC = replace(BRAIN, groups=2)
PLAIN = replace(SPEC, softmax="online", lse=False)
TILE = AttentionTile(16, 16, 4, 1)
BATCH, HEADS, KEYS, PAGE = 3, 2, 64, 16
CASES = {
    "the scaled product": (SPEC, Cache()),
    "online": (PLAIN, Cache()),
    "inputs of every shape": (replace(SPEC, program=programs.EVERY_SHAPE), Cache()),
    "sinks": (replace(SPEC, sinks=True, softmax="head"), Cache()),
    "a running φ": (replace(SPEC, softmax="running"), Cache()),
    "pages of float8": (
        replace(PLAIN, lengths=True), Cache("float8_e4m3fn", scales=True, page=PAGE)
    ),
    "whole keys that begin with their values": (
        replace(PLAIN, head_dim=24, lengths=True), Cache(shares_values=True)
    ),
}  # fmt: skip


def remembering(spec: AttentionSpec, cache: Cache) -> DecodeKernel:
    """A kernel that is launched nowhere."""
    kernel = build_decode(spec, cache, TILE)
    fake: Any = SimpleNamespace(
        KERNEL=Kernel(kernel.module.KERNEL.arg_names),
        CONSTANTS=kernel.module.CONSTANTS,
        OPTIONS=kernel.module.OPTIONS,
    )
    return replace(kernel, module=fake)


def operands(spec: AttentionSpec, cache: Cache, skipped: int = 0) -> dict[str, Any]:
    """Of a call, each of which begins after so many elements."""

    def made(*sizes: int, dtype: str = spec.dtype) -> torch.Tensor:
        count = torch.Size(sizes).numel()
        own = torch.empty(skipped + count, dtype=getattr(torch, dtype))
        return own[skipped:].view(sizes)

    heads = HEADS * spec.groups
    lead = (9, HEADS, PAGE) if cache.page else (BATCH, HEADS, KEYS)
    k = made(*lead, spec.head_dim, dtype=cache.of(spec))
    is_part = cache.shares_values
    found: dict[str, Any] = {
        "q": made(BATCH, heads, 1, spec.head_dim),
        "k": k,
        "v": k[..., : spec.value_dim] if is_part else made(*lead, spec.value_dim,
                                                           dtype=cache.of(spec)),
        "out": made(BATCH, heads, 1, spec.value_dim),
    }  # fmt: skip
    shapes = {"matrix": (1, 1, 1, KEYS), "column": (heads, 1, 1), "vector": (1, KEYS), "one": (1,)}
    found["inputs"] = [made(*shapes.get(item.shape, ()), dtype=item.dtype) for item in spec.inputs]
    optional = {
        "lse": (spec.lse, (BATCH, heads, 1), "float32"),
        "lengths": (spec.lengths, (BATCH,), "int32"),
        "table": (cache.page, (BATCH, KEYS // PAGE), "int32"),
        "k_scale": (cache.scales, (HEADS,), "float32"),
        "v_scale": (cache.scales, (HEADS,), "float32"),
        "phi": (spec.takes_phi, (heads,), "float32"),
        "sinks": (spec.sinks, (heads,), "float32"),
        "redone": (not spec.is_online, (1,), "int64"),
    }
    for name, (is_there, shape, dtype) in optional.items():
        found[name] = made(*shape, dtype=dtype) if is_there else None
    return found


def call(kernel: DecodeKernel, given: dict[str, Any], splits: int = 2) -> None:
    kernel(**given, splits=splits, workspace=kernel.workspace(given["q"], 4))


@pytest.mark.parametrize("name", CASES)
def test_a_launch_of_other_tensors_is_given_what_a_first_one_is(name, private_cache):
    """Mutants: keys are given whole; operands in another order; scales for one another."""
    spec, cache = CASES[name]
    first, second = operands(spec, cache), operands(spec, cache)
    again, anew = remembering(spec, cache), remembering(spec, cache)
    call(again, first)
    call(again, second)
    call(anew, second)
    fakes = again.module.KERNEL, anew.module.KERNEL
    assert [fake.looked_up for fake in fakes] == [1, 1]
    (grid, given), (same, wanted) = fakes[0].calls[1], fakes[1].calls[0]
    assert grid == same
    for at, (one, other) in enumerate(zip(given, wanted, strict=True)):
        if fakes[0].arg_names[at] in ("partials", "arrived", "moves"):
            assert (one is None) == (other is None)
        else:
            assert said(one) == said(other), fakes[0].arg_names[at]


def wider(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape, rows further apart."""
    return torch.cat((tensor, tensor), -1)[..., : tensor.shape[-1]]


OTHERS = {
    "CTAs": ({}, 3),
    "no logarithms": ({"lse": lambda tensor: None}, 2),
    "strides": ({"k": wider}, 2),
    "a result that lies otherwise": ({"out": wider}, 2),
    "fewer keys": ({"k": lambda t: t[:, :, :48], "v": lambda t: t[:, :, :48]}, 2),
    "fewer sequences": (dict.fromkeys(("q", "k", "v", "out", "lse"), lambda t: t[:2]), 2),
    "a counter of 32 bits": ({"redone": lambda tensor: tensor.int()}, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_lies_otherwise_is_looked_up_anew(name, private_cache):
    """Mutants: each part of what is remembered is left out, but where an address lies, of which the
    next test tells, and devices, of which there is one here."""
    changes, splits = OTHERS[name]
    kernel, given = remembering(SPEC, Cache()), operands(SPEC, Cache())
    call(kernel, given)
    call(kernel, given | {name: change(given[name]) for name, change in changes.items()}, splits)
    assert kernel.module.KERNEL.looked_up == 2
    call(kernel, given)
    assert kernel.module.KERNEL.looked_up == 2


def test_addresses_that_triton_compiles_for_are_looked_up_anew(private_cache):
    kernel = remembering(SPEC, Cache())
    for skipped in (0, 1, 4, 8):
        call(kernel, operands(SPEC, Cache(), skipped))
    assert kernel.module.KERNEL.looked_up == 3  # all begin as at first after 8 numbers of 16 bits


def test_what_does_not_fit_is_an_error_after_what_does(private_cache):
    """Mutant: dtypes are not remembered."""
    kernel, given = remembering(SPEC, Cache()), operands(SPEC, Cache())
    call(kernel, given)
    with pytest.raises(KernelError, match="q is of float16"):
        call(kernel, given | {"q": given["q"].half()})


def test_values_that_are_no_part_of_keys_are_an_error_after_those_that_are(private_cache):
    """Mutant: where values begin is not remembered, and such are read without a word."""
    spec, cache = CASES["whole keys that begin with their values"]
    kernel, given = remembering(spec, cache), operands(spec, cache)
    call(kernel, given)
    apart = torch.empty_like(given["k"])[..., : spec.value_dim]
    with pytest.raises(KernelError, match="v is not the beginning of k"):
        call(kernel, given | {"v": apart})


def test_no_more_are_remembered_than_some(private_cache, monkeypatch):
    monkeypatch.setattr(relaunching, "MOST_KNOWN", 2)
    kernel, given = remembering(SPEC, Cache()), operands(SPEC, Cache())
    for keys in (64, 63, 62, 61, 61):
        call(kernel, given | {name: given[name][:, :, :keys] for name in ("k", "v")})
        assert len(kernel.known) <= 2
    assert kernel.module.KERNEL.looked_up == 4
