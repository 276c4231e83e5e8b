"""Which kernel a call of attention takes, and its memory under CUDA graphs, on a fake GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch

from overlapc.codegen.attention.decode import DecodeKernel
from overlapc.codegen.attention.kernel import AttentionKernel
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import KernelError
from overlapc.runtime import kernel_attempts
from overlapc.runtime.attention import kernels as attention_kernels
from overlapc.runtime.attention import meeting
from overlapc.runtime.attention import op as attention
from overlapc.runtime.ops import calls_of
from tests.runtime.signaled import fake_gpu

SPEC = AttentionSpec("float32", 16, 16, groups=4, scale=0.25, lse=False)
SITE = "a site of dispatch"
H100 = 132


@contextmanager
def gpu_that_computes(gpu: fake_gpu.Gpu, launched: list[str]) -> Iterator[None]:
    """Kernels are launched on the fake GPU; a decode gives the first number of its queries.

    Its CTAs meet in the workspace as those of the template do: the last one adds up.
    """

    def decode(kernel, q, k, v, out, *, splits, workspace, **named):
        launched.append(f"decode {splits}")
        units = q.shape[0] * (q.shape[1] // kernel.spec.groups) * kernel.blocks(q.shape[2])
        arrived, partials = workspace.arrived, workspace.partials

        def cta(unit, split):
            partials[unit * splits + split] = q.flatten()[0]
            arrived[unit] += 1
            if arrived[unit] == splits:
                out.fill_(partials[unit * splits : (unit + 1) * splits].mean())
                arrived[unit] = 0

        def alone():
            out.fill_(q.flatten()[0])

        steps = [partial(cta, u, s) for u in range(units) for s in range(splits)]
        gpu.enqueue(fake_gpu.Work("decode", steps if splits > 1 else [alone]))

    def prefill(kernel, q, k, v, out, **named):
        launched.append("prefill")

    with pytest.MonkeyPatch.context() as patch, fake_gpu.present(gpu):
        patch.setattr(kernel_attempts, "runs_kernels", lambda device: True)
        patch.setattr(attention, "_redone", {})
        patch.setattr(attention_kernels, "interprets", lambda: None)
        patch.setattr(attention_kernels, "counters", meeting.Counters())
        patch.setattr(attention_kernels, "multiprocessors", lambda device: H100)
        patch.setattr(DecodeKernel, "__call__", decode)
        patch.setattr(AttentionKernel, "__call__", prefill)
        with fake_gpu.in_memory_of(gpu):
            yield


def call(spec, q, keys=512):
    k, v = (q.new_empty((q.shape[0], q.shape[1] // spec.groups, keys, 16)) for _ in range(2))
    return attention._run(q, k, v, [], None, None, None, str(spec), SITE)[0]


@pytest.mark.parametrize(
    ("batch", "rows", "keys", "way"),
    [
        (1, 1, 512, "decode 16"),
        (1, 16, 512, "decode 16"),
        (1, 17, 512, "prefill"),
        (1, 1, 16, "decode 1"),
        (64, 1, 512, "decode 1"),
        (1, 1, 0, "decode 1"),
    ],
)
def test_few_rows_take_the_kernel_of_a_decode(batch, rows, keys, way):
    """And are called what they are. Mutant: a short prefill counts as a decode."""
    launched: list[str] = []
    calls_of(SITE).clear()
    with gpu_that_computes(fake_gpu.Gpu(), launched):
        call(SPEC, torch.empty(batch, 8, rows, 16), keys)
    assert launched == [way]
    splits, what = way.partition(" ")[2], "decode" if rows == 1 else "few rows"
    said = f"zero, {what}, {splits} split{'s' * (splits != '1')}"
    assert list(calls_of(SITE)) == [said if splits else "zero"]


@pytest.mark.parametrize(("heads", "way"), [(71, "decode 16"), (128, "decode 16")])
def test_one_row_is_a_decode_whoever_shares_its_keys(heads, way):
    """The kernel of many rows would read all keys once for each head."""
    launched: list[str] = []
    with gpu_that_computes(fake_gpu.Gpu(), launched):
        call(replace(SPEC, groups=heads), torch.empty(1, heads, 1, 16))
        call(replace(SPEC, groups=heads), torch.empty(1, heads, 2, 16))
    assert launched == [way, "prefill"]


def two_graphs(seed: int, replays: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Queries and results of two graphs that are replayed so often, beside each other."""
    gpu, queries, results = fake_gpu.Gpu(seed), [], []
    with gpu_that_computes(gpu, []):
        for number in (1.0, 2.0):
            q = torch.empty(1, 8, 1, 16).fill_(number)
            call(SPEC, q)  # as warms up
            gpu.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            results.append(call(SPEC, q))
            graph.capture_end()
            queries.append((q, graph, torch.cuda.Stream("cuda")))
        for _ in range(replays):
            for _, graph, stream in queries:
                with torch.cuda.stream(stream):
                    graph.replay()
        gpu.synchronize()
    return [q for q, _, _ in queries], results


def wrong_replays(replays: int = 2) -> int:
    """How many of 8 orders of work give a wrong result."""
    wrong = 0
    for seed in range(8):
        queries, results = two_graphs(seed, replays)
        pairs = zip(queries, results, strict=True)
        wrong += any(not (result == q.flatten()[0]).all() for q, result in pairs)
    return wrong


def test_graphs_that_are_replayed_beside_each_other_share_no_memory():
    assert wrong_replays() == 0


def test_memory_that_calls_share_is_caught(monkeypatch):
    original = DecodeKernel.workspace
    kept = lru_cache(lambda kernel, shape, splits: original(kernel, torch.empty(shape), splits))
    monkeypatch.setattr(
        DecodeKernel, "workspace",
        lambda kernel, q, splits, zeros: kept(kernel, tuple(q.shape), splits),
    )  # fmt: skip
    assert wrong_replays() > 0


def test_graphs_that_have_the_counters_of_a_stream_are_caught(monkeypatch):
    monkeypatch.setattr(meeting.Counters, "_captured", meeting.Counters._kept)
    assert wrong_replays(1) > 0  # a second replay would find the sums of the first


def cannot_build() -> list[Exception]:
    """What Triton raises of such a kernel."""
    from triton.errors import TritonError

    return [TritonError("no"), RuntimeError("PassManager::run failed")]


@pytest.mark.parametrize("error", cannot_build(), ids=str)
def test_a_kernel_that_triton_cannot_build_leaves_others_alone(monkeypatch, error):
    """Few rows have another kernel than many: one that fails is given up, and no other."""
    launched: list[str] = []
    q = torch.randn(1, 8, 1, 16)
    k, v = torch.randn(1, 2, 40, 16), torch.randn(1, 2, 40, 16)

    def fails(*arguments, **named):
        launched.append("tried")
        raise error

    monkeypatch.setattr(attention._kernels, "given_up", {})
    monkeypatch.setattr(kernel_attempts, "runs_kernels", lambda device: True)
    monkeypatch.setattr(attention_kernels, "interprets", lambda: None)
    monkeypatch.setattr(DecodeKernel, "__call__", fails)
    monkeypatch.setattr(AttentionKernel, "__call__", lambda *a, **n: launched.append("prefill"))
    calls_of(SITE).clear()
    found, _ = attention._run(q, k, v, [], None, None, None, str(SPEC), SITE)
    attention._run(q, k, v, [], None, None, None, str(SPEC), SITE)
    attention._run(q.expand(1, 8, 40, 16), k, v, [], None, None, None, str(SPEC), SITE)
    assert launched == ["tried", "prefill"]
    assert dict(calls_of(SITE)) == {"torch": 2, "zero": 1}
    scores = 0.25 * q.double() @ k.double().repeat_interleave(4, 1).mT
    wanted = scores.softmax(-1) @ v.double().repeat_interleave(4, 1)
    torch.testing.assert_close(found, wanted.float())


def test_what_fails_on_a_device_is_no_kernel_that_cannot_be_built(monkeypatch):
    """Torch would compute what a device has no memory for, or is broken for, as badly."""

    def fails():
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(kernel_attempts, "runs_kernels", lambda device: True)
    attempts = kernel_attempts.KernelAttempts("a test")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        attempts.run("kernel", torch.empty(1), fails)
    assert not attempts.given_up


def test_operands_that_do_not_fit_are_torchs_or_an_error():
    with pytest.raises((KernelError, RuntimeError)):
        attention._run(
            torch.randn(1, 8, 1, 16), torch.randn(1, 2, 40, 12), torch.randn(1, 2, 40, 16), [],
            None, None, None, str(SPEC), SITE,
        )  # fmt: skip
