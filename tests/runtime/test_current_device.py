"""Kernels are launched on the device of their operands, whichever is current."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.runtime.attention import gradients as attention_gradients
from overlapc.runtime.attention import op as attention
from overlapc.runtime.attention import paged
from overlapc.runtime.linear import kernels as linear_kernels

SPEC = AttentionSpec("float32", 64, 64)


class Launched(Exception):
    """What a pretended kernel raises, with the number of the device that is current."""


@pytest.fixture
def launch(monkeypatch):
    """A kernel that tells which device is current: number 0, unless somebody changed that."""
    current = [0]

    @contextmanager
    def device_of(tensor):
        current.append(tensor.device.index)
        yield
        current.pop()

    def launched(*_, **__):
        raise Launched(current[-1])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    with FakeTensorMode():
        yield launched


def of_heads():
    return torch.empty(1, 2, 1, 64, device="cuda:1")


def attention_forward(launch, monkeypatch):
    monkeypatch.setattr(attention, "run_kernel", launch)
    monkeypatch.setattr(attention, "_redone", {})
    q, k, v = (of_heads() for _ in range(3))
    attention._run(q, k, v, [], None, None, None, str(SPEC), "a site")


def attention_backward(launch, monkeypatch):
    monkeypatch.setattr(attention_gradients, "_by_kernels", launch)
    slopes, q, k, v, out = (of_heads() for _ in range(5))
    sums = torch.empty(1, 2, 1, device="cuda:1")
    attention_gradients._run(
        slopes, None, q, k, v, out, sums, [], None, None, [True] * 4, str(SPEC), "a site"
    )


def attention_over_pages(launch, monkeypatch):
    monkeypatch.setattr(paged, "run_decode", launch)
    pages = torch.empty(4, 2, 16, 64, device="cuda:1")
    table = torch.zeros(1, 4, dtype=torch.int32, device="cuda:1")
    lengths = torch.zeros(1, dtype=torch.int32, device="cuda:1")
    paged._run(of_heads(), pages, pages, table, lengths, None, None, str(SPEC), str(Cache(page=16)))


def linear_layer(launch, monkeypatch):
    launch.spec = spec = SimpleNamespace(out="float32", weights=1, splits=1, results=1)
    monkeypatch.setattr(linear_kernels, "build_linear", lambda _: launch)
    x, weight = (torch.empty(*size, device="cuda:1") for size in ((1, 64), (64, 32)))
    its = SimpleNamespace(
        x=lambda _: x, weights=lambda _: [weight], inputs=lambda _: [[]], scales=lambda _: [],
        zeros=lambda _: [], gain=lambda _: None,
    )  # fmt: skip
    linear_kernels.by_kernel(spec, its)([x, weight], None, 0)


@pytest.mark.parametrize(
    "run", [attention_forward, attention_backward, attention_over_pages, linear_layer]
)
def test_operands_on_another_device_than_the_current_one(run, launch, monkeypatch):
    with pytest.raises(Launched) as raised:
        run(launch, monkeypatch)
    assert raised.value.args == (1,)
