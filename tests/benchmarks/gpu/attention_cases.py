"""The part of attention on tiny sizes, and kernels that compute something else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu import linear as gpu_linear
from benchmarks.gpu import run as gpu
from benchmarks.gpu import worker as gpu_worker
from benchmarks.gpu.attention import caches as gpu_attention_caches
from benchmarks.gpu.attention import checks as gpu_attention_checks
from benchmarks.gpu.attention import part as gpu_attention
from benchmarks.gpu.attention import speed as gpu_attention_speed
from benchmarks.gpu.report import Page
from overlapc.codegen.attention.backward import build_backward
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.kernel import build_attention
from overlapc.runtime.attention import gradients as attention_gradients
from overlapc.runtime.attention import kernels as attention_kernels
from tests.benchmarks.gpu.pretended import Inline, pretended_gpu

DIM = 16
SMALL = {
    "SPEC": replace(gpu_attention_speed.SPEC, head_dim=DIM, value_dim=DIM, scale=0.25),
    "HEADS": 1,
    "DIM": DIM,
    "PRODUCT": 32,
    "COLD_BYTES": 1 << 13,
}
SMALL_LATENT = replace(
    gpu_attention_checks.LATENT, head_dim=DIM + DIM // 2, value_dim=DIM, groups=3, scale=0.25
)


@contextmanager
def small_attention() -> Iterator[None]:
    """Let the part of attention believe in a small GPU, and measure tiny ones."""
    checks = gpu_attention_checks
    narrow = {
        kind: (check, {name: narrowed(case) for name, case in cases.items()})
        for kind, (check, cases) in checks.CHECKS.items()
    }
    shape = gpu_attention_speed.PrefillShape
    with (
        pretended_gpu(),
        mock.patch.dict(checks.CHECKS, narrow),
        mock.patch.multiple(checks, SIZES=(2, 1, 20, 45), DECODE_SIZES=(3, 1, 1, 90),
                            GRADIENT_SIZES=(2, 1, 18, 37), CROWDED_SIZES=(2, 1, 1, 50),
                            CROWDED_LAUNCHES=1),
        mock.patch.multiple(gpu_attention_speed, **SMALL),
        mock.patch.object(gpu_attention_caches, "LATENT", SMALL_LATENT),
        mock.patch.multiple(
            gpu_attention, K=32, SIZES=((2, 1), (1, 2), (3, 1), (1, 1)), WITH_FLEX=1,
            STATIC=((2, 64, 20, 4),), LONG=(shape(1, 2, 40, DIM), shape(1, 1, 24, DIM, False)),
            WIDE_DECODE=(gpu_attention_speed.DecodeShape(1, 2, 64, spread=300.0),),
            LATENTS=(gpu_attention_caches.LatentShape(2, 3, 64),),
            FLOAT8S=(gpu_attention_speed.DecodeShape(2, 2, 40),),
            LEARNT=(shape(1, 2, 20, DIM),),
            WIDE_PREFILL=(shape(1, 1, 32, DIM, spread=300.0),),
        ),
        mock.patch.object(gpu_linear, "READ_BYTES", 1 << 12),
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(1 << 22, 1 << 22)),
        mock.patch.object(torch, "compile", lambda function, **_: function),
    ):  # fmt: skip
        yield


def narrowed(case: Any) -> Any:
    """A case with fewer columns, but for latent ones, whose columns are what they are about."""
    if case.cache.shares_values:
        return case
    dims = {128: 32, 64: 16, 80: 20, 192: 48, 256: 64}
    spec = case.spec
    head, value = dims[spec.head_dim], dims[spec.value_dim]
    return replace(case, spec=replace(spec, head_dim=head, value_dim=value, scale=head**-0.5))


def dry_run(out: str, first: int | None = None) -> list[str]:
    """Run the part of attention on tiny ones; the names of the files that it wrote."""
    with small_attention():
        gpu.measure("attention", Page(Path(out), "attention"), Inline(first), minutes=9)
    return sorted(path.name for path in Path(out).iterdir())


WRONG = {
    "scale": lambda spec: replace(spec, scale=1.05 * spec.scale),
    "one key too many": lambda spec: replace(spec, after=1),
    "no mask": lambda spec: replace(spec, program=""),
    "nothing is redone": lambda spec: replace(spec, softmax="online"),
}


def a_launch_that_differs_is_seen(nth: int) -> list[dict[str, Any]]:
    """The row of many decodes at once, right and where the ``nth`` gives other bits."""
    row = gpu_worker.Row("", "", "benchmarks.gpu.attention.checks.values",
                         {"kind": "crowded", "name": "pages"})  # fmt: skip
    checks, calls = gpu_attention_checks, itertools.count()
    run_decode = checks.run_decode

    def decode(*given: Any, **named: Any) -> Any:
        found = run_decode(*given, **named)
        if next(calls) == nth:
            given[5][-1, 0, 0, 3] *= 1.01
        return found

    with small_attention():
        right = gpu_worker.attempt(row)
        with mock.patch.object(checks, "run_decode", decode):
            return [right, gpu_worker.attempt(row)]


def a_wrong_attention_is_seen(kind: str, name: str, wrong: str) -> list[dict[str, Any]]:
    """The row of a check, right and of a kernel that computes something else."""
    row = gpu_worker.Row("", "", "benchmarks.gpu.attention.checks.values",
                         {"kind": kind, "name": name})  # fmt: skip

    def attention(spec: Any, tile: Any) -> Any:
        return build_attention(WRONG[wrong](spec), tile)

    def decode(spec: Any, cache: Any, tile: Any) -> Any:
        return build_decode(WRONG[wrong](spec), cache, tile)

    def backward(spec: Any, *rest: Any) -> Any:
        return build_backward(WRONG[wrong](spec), *rest)

    with small_attention():
        right = gpu_worker.attempt(row)
        with (
            mock.patch.object(attention_gradients, "build_backward", backward),
            mock.patch.object(gpu_attention_checks, "build_attention", attention),
            mock.patch.object(attention_kernels, "build_decode", decode),
        ):
            return [right, gpu_worker.attempt(row)]
