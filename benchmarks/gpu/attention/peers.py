"""What attention on a GPU is compared with: torch's backends, FlexAttention, FlashInfer,
FlashMLA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries [batch, groups * heads, rows, columns], keys and values [batch, heads, keys, columns]."""
Peer = Callable[[Operands], object]

BACKENDS: Mapping[str, tuple[SDPBackend, ...]] = {
    "sdpa": (),
    "sdpa flash": (SDPBackend.FLASH_ATTENTION,),
    "sdpa cudnn": (SDPBackend.CUDNN_ATTENTION,),
    "sdpa efficient": (SDPBackend.EFFICIENT_ATTENTION,),
    "sdpa math": (SDPBackend.MATH,),
}
"""The first is what torch chooses by itself."""
MATH_BYTES = 8 << 30
"""Scores and copies of keys beyond which torch's unfused attention is not tried: chosen."""
FLASHINFER_BYTES = 128 << 20
"""Of its workspace, as its documentation has it."""
LATENT_PAGE = 64
"""Keys of a page, as FlashMLA demands."""


def sdpa_peers(given: Operands, *, is_causal: bool) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those of torch's backends that run on such operands, and why others do not."""
    found: dict[str, Peer] = {}
    why_not: dict[str, str] = {}
    for name, backends in BACKENDS.items():
        if name == "sdpa math" and _math_bytes(given) > MATH_BYTES:
            why_not[name] = "it would store too much"
            continue
        peer = _sdpa(backends, is_causal)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of every reason
                peer(given)
        except RuntimeError as error:
            why_not[name] = str(error).splitlines()[0]
            continue
        found[name] = peer
    return found, why_not


def _sdpa(backends: tuple[SDPBackend, ...], is_causal: bool) -> Peer:
    def run(given: Operands) -> object:
        q, k, v = given
        is_grouped = q.shape[1] != k.shape[1]
        if not backends:
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=is_causal, enable_gqa=is_grouped
            )
        with sdpa_kernel(list(backends)):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=is_causal, enable_gqa=is_grouped
            )

    return run


def _math_bytes(given: Operands) -> int:
    q, k, _ = given
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    repeated = q.shape[0] * q.shape[1] * k.shape[2] * k.shape[3]
    return 8 * scores + 8 * repeated


def flex_peer(given: Operands, *, is_causal: bool) -> Peer:
    """FlexAttention, compiled for such operands; what it raises passes through."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # past a number of shapes it would run as it is written, unfused
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    q, k, _ = given
    mask: Any = None
    if is_causal:
        mask = create_block_mask(
            lambda b, h, row, key: row >= key, None, None, q.shape[2], k.shape[2],
            device=q.device.type,
        )  # fmt: skip
    is_grouped = q.shape[1] != k.shape[1]

    def run(given: Operands) -> object:
        return compiled(*given, block_mask=mask, enable_gqa=is_grouped)

    run(given)
    return run


def flashinfer_peer(
    q: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor], table: torch.Tensor, keys: int
) -> Callable[[tuple[torch.Tensor, torch.Tensor]], object]:
    """FlashInfer's decode over pages [pages, heads, page, columns], planned beforehand; ImportError
    where it is not installed."""
    import flashinfer  # pyright: ignore[reportMissingImports]

    batch, heads, _, columns = q.shape
    _, key_heads, page, _ = pages[0].shape
    used = -(-keys // page)
    workspace = torch.empty(FLASHINFER_BYTES, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, kv_layout="HND", use_tensor_cores=heads // key_heads >= 4
    )
    begins = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * used
    last = torch.full((batch,), keys - (used - 1) * page, dtype=torch.int32, device=q.device)
    wrapper.plan(
        begins, table[:, :used].reshape(-1), last, heads, key_heads, columns, page,
        q_data_type=q.dtype, kv_data_type=pages[0].dtype,
    )  # fmt: skip
    queries = q[:, :, 0].contiguous()
    wrapper.run(queries, pages)
    return lambda its: wrapper.run(queries, its)


def flashmla_peer(given: Operands, scale: float) -> Peer:
    """FlashMLA's decode over a latent cache, which is cut into pages where it lies; ImportError
    where it is not installed."""
    import flash_mla  # pyright: ignore[reportMissingImports]

    q, k, v = given
    table = _latent_table(k)
    lengths = torch.full((k.shape[0],), k.shape[2], dtype=torch.int32, device=k.device)
    plan = flash_mla.get_mla_metadata(lengths, q.shape[1], 1)

    def run(its: Operands) -> object:
        pages = its[1].view(-1, LATENT_PAGE, 1, q.shape[3])
        return flash_mla.flash_mla_with_kvcache(
            its[0].transpose(1, 2), pages, table, lengths, v.shape[3], *plan, softmax_scale=scale
        )

    run(given)
    return run


def flashinfer_latent_peer(given: Operands, scale: float) -> Peer:
    """FlashInfer's attention over a latent cache, as of ``flashmla_peer``."""
    import flashinfer  # pyright: ignore[reportMissingImports]

    q, k, v = given
    table = _latent_table(k)
    batch, heads, _, columns = q.shape
    values = v.shape[3]
    begins = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    lengths = torch.full((batch,), k.shape[2], dtype=torch.int32, device=q.device)
    workspace = torch.empty(FLASHINFER_BYTES, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace)
    wrapper.plan(
        begins, begins * table.shape[1], table.reshape(-1), lengths, heads, values,
        columns - values, LATENT_PAGE, False, scale, q.dtype, k.dtype,
    )  # fmt: skip

    def run(its: Operands) -> object:
        sides = its[0][:, :, 0], its[1].view(-1, LATENT_PAGE, columns)
        (q, rest_of_q), (k, rest_of_k) = (
            (side[..., :values], side[..., values:]) for side in sides
        )
        return wrapper.run(q, rest_of_q, k, rest_of_k)

    run(given)
    return run


def _latent_table(k: torch.Tensor) -> torch.Tensor:
    """Of the pages into which [batch, 1, keys, columns] is cut, in order."""
    pages = torch.arange(k.shape[0] * k.shape[2] // LATENT_PAGE, dtype=torch.int32, device=k.device)
    return pages.view(k.shape[0], -1)


def as_transformers(groups: int) -> Any:
    """Decode over a static cache as transformers spells it, compiled by Inductor: heads repeated,
    a mask of booleans over the whole cache, torch's attention."""

    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        k, v = (_repeated(side, groups) for side in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).contiguous()

    torch._dynamo.reset()
    return torch.compile(attention, dynamic=False, fullgraph=True)


def _repeated(side: torch.Tensor, groups: int) -> torch.Tensor:
    batch, heads, keys, columns = side.shape
    wide = side[:, :, None].expand(batch, heads, groups, keys, columns)
    return wide.reshape(batch, heads * groups, keys, columns)
