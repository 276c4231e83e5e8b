"""What a graph on a GPU becomes, where one is said to be there: the op, its heads and lengths."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.visibility import FINITE, INFINITE, hides
from overlapc.errors import TargetError
from overlapc.graphs.attention import layouts, problems
from overlapc.passes import rewrite_attention
from overlapc.planning.attention.table import (
    AttentionEntry,
    AttentionTable,
    AttentionTrial,
    shape_of,
)
from overlapc.planning.tables import Machine
from overlapc.runtime.attention import kernels
from tests.attention.repeated_heads import grouped_queries, repeat_kv
from tests.attention.rewriting import rewrite
from tests.attention.sizes import G, H

KEYS = 8192


def static_cache(q, k, v, offset):
    """As transformers compiles it: heads are repeated under a mask of booleans."""
    own = torch.arange(1, device=q.device) + offset
    mask = torch.arange(KEYS, device=q.device)[None, None, None] <= own[:, None]
    k, v = repeat_kv(k, H // G), repeat_kv(v, H // G)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def two_layers(q, k, v, offset):
    own = torch.arange(1, device=q.device) + offset
    mask = torch.arange(KEYS, device=q.device)[None, None, None] <= own[:, None]
    k, v = repeat_kv(k, H // G), repeat_kv(v, H // G)
    for _ in range(2):
        q = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return q


def added(q, k, v, mask):
    """As transformers spells eager attention."""
    least = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    scores = q @ repeat_kv(k, H // G).mT * 0.125 + least[..., : k.shape[-2]]
    return F.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ repeat_kv(v, H // G)


def capped(q, k, v, mask):
    scores = 50 * torch.tanh(q @ repeat_kv(k, H // G).mT / 50)
    return (scores + (1 - mask.to(q.dtype)) * -1e30).softmax(-1) @ repeat_kv(v, H // G)


def filled(q, k, v, mask):
    scores = (q @ repeat_kv(k, H // G).mT).masked_fill(~mask, torch.finfo(q.dtype).min)
    return scores.softmax(-1) @ repeat_kv(v, H // G)


def called(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def operands(device="cpu"):
    q, k = torch.empty(1, H, 1, 64, device=device), torch.empty(1, G, KEYS, 64, device=device)
    return q, k, torch.empty_like(k), torch.tensor(5, device=device)


@pytest.fixture
def on_gpu(monkeypatch):
    """Attentions seem to be on an H100; of nothing there is a table."""
    original, seen = rewrite_attention.problem_of, []

    def problem_of(found, *rest):
        problem = replace(
            original(found, *rest), device="cuda", runs_kernels=True, multiprocessors=132, splits=16
        )
        seen.append(problem)
        return problem

    monkeypatch.setattr(layouts, "planned_device", lambda device: device)  # meta is none of ours
    monkeypatch.setattr(rewrite_attention, "problem_of", problem_of)
    monkeypatch.setattr(rewrite_attention, "attention_table", lambda device: None)
    with torch.no_grad():
        yield seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spelled", [added, capped, filled, called])
def test_the_kernel_is_told_what_a_given_mask_hides(on_gpu, spelled, dtype):
    """Minus infinity alone, where booleans are filled with nothing else.

    Mutants: a cap before a mask is a cap of it; booleans alone are masks.
    """
    q, k, v, _ = (side.to(dtype) for side in operands("meta"))
    mask = torch.empty(1, 1, 1, KEYS, dtype=torch.bool, device="meta")
    done = rewrite(spelled, q, k, v, mask, softmax="unified")
    assert done.codes == ["unified"]
    (text,) = re.findall(r"'(attention dtype=.*?)', '", done.after[-1])
    assert hides(AttentionSpec.parse(text).scores) == (INFINITE if spelled is called else FINITE)


@pytest.mark.parametrize("architecture", ["gfx1030", "gfx1100", "gfx1201", "gfx90a"])
def test_a_device_of_amd_without_the_units_that_kernels_take_is_said(
    on_gpu, monkeypatch, architecture
):
    """Mutant: the op is put in, and torch computes each of its calls, as a log alone says."""
    monkeypatch.setattr(problems, "architecture", lambda device: architecture)
    done = rewrite(static_cache, *operands("meta"), softmax="unified")
    assert done.codes == ["=no_own_kernel"]
    said = f"none is generated for {architecture}, only for gfx942 and gfx950."
    assert done.sites[0].reason == f"There is no kernel of our own for it: {said}"


def test_no_keys_are_shared_out_where_no_kernel_is_generated(monkeypatch):
    """What a graph asks for before it is decided on raises nothing."""
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 304)
    shapes, device = ((1, H, 1, 64), (1, G, KEYS, 64), (1, G, KEYS, 64)), torch.device("cuda")
    for architecture, is_served in (("gfx1100", False), ("gfx942", True), ("sm_90", True)):
        monkeypatch.setattr(kernels, "architecture", lambda device, own=architecture: own)
        assert (kernels.decode_for("bfloat16", *shapes, device) is not None) == is_served


def test_a_static_cache_takes_the_op_with_a_length_and_each_head_once(on_gpu, golden):
    done = rewrite(static_cache, *operands("meta"), softmax="unified")
    assert done.codes == ["unified"]
    assert "8192, 64] meta" in done.after[-1]
    golden(f"{done.sites[0].shape}\n{done.sites[0].reason}\n\n{done.after[-1].rstrip()}")


def test_rows_are_counted_in_what_compilation_made(on_gpu, monkeypatch):
    """What a first call makes may be memory of a CUDA graph."""
    made = []
    monkeypatch.setattr(
        rewrite_attention, "counter_of", lambda site, device: made.append((site, device.type))
    )
    done = rewrite(two_layers, *operands("meta"), softmax="unified")
    assert sorted(made) == sorted((site.id, "meta") for site in done.sites)
    assert len(set(made)) == 2


def test_layers_share_a_length(on_gpu):
    done = rewrite(two_layers, *operands("meta"), softmax="unified")
    assert done.codes == ["unified"] * 2
    assert done.after[-1].count("overlapc.attention.default(") == 2
    assert done.after[-1].count("select(") == 1


def test_a_kernel_of_our_own_takes_heads_once_under_any_mask(on_gpu):
    inputs = [torch.empty(2, h, n, 8, device="meta") for h, n in ((H, 6), (G, 9), (G, 9))]
    mask = torch.empty(2, 1, 6, 9, device="meta")
    done = rewrite(grouped_queries, *inputs, mask, softmax="unified")
    assert done.codes == ["unified"]
    assert f"groups={H // G} " in done.after[-1]


def test_torchs_is_given_repeated_heads_there(on_gpu):
    inputs = [torch.empty(2, h, n, 8, device="meta") for h, n in ((H, 6), (G, 9), (G, 9))]
    done = rewrite(grouped_queries, *inputs, torch.ones(6, 9, device="meta").tril(), softmax="sdpa")
    assert "enable_gqa=True" not in done.after[-1]


@pytest.mark.parametrize(("low", "code"), [(1.5, "measured"), (0.9, "=library")])
def test_a_table_decides(on_gpu, monkeypatch, low, code):
    rewrite(static_cache, *operands(), softmax="auto")
    trial = AttentionTrial(KEYS, 1e-4, low, low, low, tile="many_rows")
    entry = AttentionEntry(shape_of(on_gpu[0]), (trial,))
    table = AttentionTable(Machine("cuda", "here", ""), (entry,))
    monkeypatch.setattr(rewrite_attention, "attention_table", lambda device: table)
    done = rewrite(static_cache, *operands(), softmax="auto")
    assert done.codes == [code]
    assert (done.after == done.before) == (code[0] == "=")
    assert (" tile=many_rows'" in done.after[-1]) == (code == "measured")


def test_a_table_of_another_machine_is_no_table(on_gpu, monkeypatch, caplog):
    def foreign(device):
        raise TargetError("It is of another GPU.", where="a file", remedy="measure")

    monkeypatch.setattr(rewrite_attention, "attention_table", foreign)
    assert rewrite(static_cache, *operands(), softmax="auto").codes == ["=predicted"]
    assert "another GPU" in caplog.text


REFUSED = {
    "dropout": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1), "Dropout"),
    "one batch of keys": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:1], v[:1]), "broadcast",
    ),
    "one head of values": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v[:, :1]), "broadcast",
    ),
    "one head of keys": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v), "broadcast",
    ),
    "a mask of more batches": (
        lambda q, k, v: F.scaled_dot_product_attention(
            q[0], k[0], v[0], q.new_zeros(2, 1, 6, 9)
        ),
        "broadcast",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_is_not_as_one_spelled_out_stays_torchs(on_gpu, name):
    function, why = REFUSED[name]
    inputs = [torch.empty(2, H, n, 8, device="meta") for n in (6, 9, 9)]
    done = rewrite(function, *inputs, softmax="unified")
    assert done.codes == ["=no_own_kernel"]
    assert why in done.sites[0].reason
    assert done.after == done.before


CALLS = {
    "nothing": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
    "booleans": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, kept()),
    "numbers": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, kept() * 2.0 - 1),
    "grouped": lambda q, k, v: F.scaled_dot_product_attention(
        q, k[:, :G], v[:, :G], enable_gqa=True
    ),
    "one head for all": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1]),
}  # fmt: skip


def kept():
    """Of the first row nothing is kept: torch's attention gives zeros, unless numbers are added."""
    made = torch.arange(54).reshape(6, 9) % 4 > 1
    made[0] = False
    return made


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_torchs_is_computed_as_torch_does(on_gpu, name):
    torch.manual_seed(0)
    inputs = [torch.randn(2, H, n, 8) for n in (6, 9, 9)]
    done = rewrite(CALLS[name], *inputs, softmax="unified")
    assert done.codes == ["unified"]
    assert "overlapc.attention" in done.after[-1]
    wanted = CALLS[name](*(t.double() for t in inputs)).float()
    torch.testing.assert_close(done.function(*inputs), wanted)


MASKED = {
    "nothing": lambda shape: None,
    "booleans of all": lambda shape: kept(),
    "numbers of each": lambda shape: torch.randn(*shape, 6, 9),
}


@pytest.mark.parametrize("mask", MASKED)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((), id="matrices", marks=pytest.mark.long),
        pytest.param((3,), id="batch", marks=pytest.mark.long),
        pytest.param((2, 3, 4), id="grouped"),
    ],
)
def test_a_call_of_any_dimensions_is_taken(on_gpu, shape, mask):
    """Mutants: the mask is not merged with the heads; the result is not split again."""
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, n, 8) for n in (6, 9, 9)]
    beside = MASKED[mask](shape)
    done = rewrite(fused, *inputs, beside, softmax="unified")
    assert done.codes == ["unified"]
    found, wanted = done.function(*inputs, beside), fused(*inputs, beside)
    assert found.stride() == wanted.stride()
    torch.testing.assert_close(found, wanted)


def fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
