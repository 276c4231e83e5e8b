"""What is timed over latent and float8 caches: bytes, operations, and how peers are called."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu.attention.caches import LatentShape
from benchmarks.gpu.attention.peers import flashinfer_latent_peer, flashmla_peer
from benchmarks.gpu.attention.speed import DecodeShape

BATCH, HEADS, KEYS, DIM, VALUES = 3, 5, 192, 24, 16
SCALE = 0.3


def test_a_latent_row_counts_keys_once_and_both_products():
    """Mutants: the cache counted as keys and values; the product of the weights left out."""
    shape = LatentShape(2, 16, 1024)
    assert shape.cache_bytes == 2 * 1024 * 576 * 2
    assert shape.bytes == shape.cache_bytes + 2 * 16 * (576 + 512) * 2
    assert shape.flops == 2 * 16 * 1024 * 2 * (576 + 512)


def test_a_float8_cache_is_half_of_a_bfloat16_one():
    """Mutant: two bytes of each number whatever it is."""
    shape = DecodeShape(8, 4, 1024)
    assert 2 * replace(shape, item=1).cache_bytes == shape.cache_bytes
    queries = shape.bytes - shape.cache_bytes
    assert replace(shape, item=1).bytes - queries == shape.cache_bytes // 2


def gathered(pages: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[pages, page, columns] as [batch, keys, columns]."""
    assert lengths.tolist() == [KEYS] * BATCH
    return pages[table.long()].flatten(1, 2)


class FlashMLA:
    """Computes what its documentation says."""

    @staticmethod
    def get_mla_metadata(lengths: Any, rows_of_a_key_head: int, key_heads: int) -> tuple[Any, None]:
        assert (rows_of_a_key_head, key_heads) == (HEADS, 1)
        return object(), None

    @staticmethod
    def flash_mla_with_kvcache(
        q: Any, pages: Any, table: Any, lengths: Any, values: int, meta: Any, splits: Any = None,
        softmax_scale: float | None = None, causal: bool = False,
    ) -> Any:  # fmt: skip
        assert q.shape == (BATCH, 1, HEADS, DIM)
        assert pages.shape[1:3] == (64, 1)
        k = gathered(pages[:, :, 0], table, lengths)
        out = F.scaled_dot_product_attention(q[:, 0], k, k[..., :values], scale=softmax_scale)
        return out[:, None], None


class Wrapper:
    """FlashInfer's, of what its documentation says."""

    def __init__(self, workspace: torch.Tensor) -> None:
        pass

    def plan(self, rows: Any, begins: Any, pages: Any, lengths: Any, heads: int, values: int,
             rest: int, page: int, causal: bool, scale: float, *dtypes: Any) -> None:  # fmt: skip
        assert rows.tolist() == list(range(BATCH + 1))
        assert (heads, values, rest, causal) == (HEADS, VALUES, DIM - VALUES, False)
        assert begins.tolist() == [at * KEYS // page for at in range(BATCH + 1)]
        self.table, self.lengths, self.scale = pages.view(BATCH, -1), lengths, scale

    def run(self, q: Any, rest_of_q: Any, k: Any, rest_of_k: Any) -> Any:
        values, rest = (gathered(side, self.table, self.lengths) for side in (k, rest_of_k))
        return F.scaled_dot_product_attention(
            torch.cat((q, rest_of_q), -1), torch.cat((values, rest), -1), values, scale=self.scale
        )


@pytest.mark.parametrize(
    ("name", "module", "make"),
    [
        ("flash_mla", FlashMLA, flashmla_peer),
        (
            "flashinfer",
            SimpleNamespace(mla=SimpleNamespace(BatchMLAPagedAttentionWrapper=Wrapper)),
            flashinfer_latent_peer,
        ),
    ],
    ids=["flashmla", "flashinfer"],
)
def test_peers_are_given_what_our_kernel_is_given(name, module, make, monkeypatch):
    """As their documentation has it; neither is installed here. Mutants: a table that begins at the
    first page for each sequence; no scale; the rest of the keys taken for their values."""
    monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    first, second = (
        (torch.randn(BATCH, HEADS, 1, DIM), torch.randn(BATCH, 1, KEYS, DIM)) for _ in range(2)
    )
    run = make((*first, first[1][..., :VALUES]), SCALE)
    q, k = second
    found = run((q, k, k[..., :VALUES]))
    out = found[0][:, 0] if isinstance(found, tuple) else found
    weights = (SCALE * q.double() @ k.double().mT).softmax(-1)
    torch.testing.assert_close(out.double(), (weights @ k[..., :VALUES].double())[:, :, 0],
                               atol=1e-5, rtol=1e-5)  # fmt: skip
