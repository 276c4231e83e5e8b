"""A Llama to shard, the plan that shards it, and the text it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = Path(__file__).parent / "text"

SEQUENCES, TOKENS = 4, 512
"""Of one batch: 2,048 rows for every GEMM, and attention stays a small part of the work."""


@dataclass(frozen=True)
class SiteShape:
    """The local GEMM of one row-parallel projection, whose result is all-reduced."""

    name: str
    m: int
    n: int
    k: int
    count: int
    """How many of them one forward runs."""


def config(vocabulary: int) -> LlamaConfig:
    """A small Llama: 49 million parameters, a forward of about two seconds on two cores."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level BPE beside the text; ``examples.text.train_tokenizer`` made it."""
    return PreTrainedTokenizerFast(tokenizer_file=str(TEXT / "tokenizer.json"))


def batch() -> torch.Tensor:
    """The first tokens of the text, as int64[SEQUENCES, TOKENS]."""
    ids = tokenizer().encode((TEXT / "overlap.txt").read_text())
    return torch.tensor(ids[: SEQUENCES * TOKENS]).view(SEQUENCES, TOKENS)


def model() -> LlamaForCausalLM:
    """The whole model in float32, in evaluation mode; the seed makes it the same on every rank."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config(len(tokenizer()))).eval()


def tensor_parallel(llama: LlamaForCausalLM, mesh: DeviceMesh) -> LlamaForCausalLM:
    """Shard in place over ``mesh``, as PyTorch's tensor-parallel tutorial does.

    Column-wise layers split their outputs, so a rank has its own heads and its own part of the
    hidden units; row-wise layers split their inputs to match, and all-reduce what they compute.
    Llama asks for heads with ``view(..., -1, head_dim)``, so the number of heads follows by itself.
    """
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    columns += ("mlp.gate_proj", "mlp.up_proj")
    rows = ("self_attn.o_proj", "mlp.down_proj")
    plan: dict[str, ParallelStyle] = {
        f"model.layers.*.{name}": ColwiseParallel() for name in columns
    }
    plan |= {f"model.layers.*.{name}": RowwiseParallel() for name in rows}
    sharded = parallelize_module(llama, mesh, plan)
    assert isinstance(sharded, LlamaForCausalLM)
    return sharded


def sites(llama: nn.Module, ranks: int) -> list[SiteShape]:
    """The row-parallel GEMMs of one forward, as they are on one rank."""
    c = llama.config
    assert isinstance(c, LlamaConfig)
    rows, layers = SEQUENCES * TOKENS, c.num_hidden_layers
    return [
        SiteShape("o_proj", rows, c.hidden_size, c.hidden_size // ranks, layers),
        SiteShape("down_proj", rows, c.hidden_size, c.intermediate_size // ranks, layers),
    ]
