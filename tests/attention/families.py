"""Families of real models, tiny and with random weights, as ``transformers`` spells them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TOKENS, LENGTH, VOCABULARY = 2, 20, 128

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
ALTERNATING = {**GROUPED, "head_dim": 16, "sliding_window": 8, "num_hidden_layers": 2}
SMALL_NAMES = {"vocab_size": VOCABULARY, "n_layer": 1, "n_head": 4}


@dataclass(frozen=True)
class Family:
    """A model of ``transformers`` by the names of its classes."""

    config: str
    model: str
    sizes: Mapping[str, Any]
    spelled: tuple[str, ...] = ("fused",)
    """Codes of its sites under eager attention, as ``Rewritten.codes``."""
    fused: tuple[str, ...] | None = ("fused_groups",)
    """The same under sdpa; None where it does not support that."""
    scale_of_weights: float = 1.0
    """Multiplied into queries and keys, so that scores get as large as in the real model."""


FAMILIES = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "mistral": Family(
        "MistralConfig",
        "MistralForCausalLM",
        {**GROUPED, "sliding_window": 8},
    ),
    "llama4": Family(
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            **GROUPED,
            "attention_chunk_size": 8,
            "intermediate_size_mlp": 128,
            "head_dim": 16,
            "num_local_experts": 2,
        },
    ),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": Family(
        "Gemma2Config", "Gemma2ForCausalLM", ALTERNATING, ("!score_function",) * 2, None
    ),
    "gpt2": Family(
        "GPT2Config", "GPT2LMHeadModel", {**SMALL_NAMES, "n_embd": 64}, fused=("=fused_already",)
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64},
        fused=("=fused_already",),
        scale_of_weights=5000.0,
    ),
    "bert": Family("BertConfig", "BertModel", SIZES, fused=("=fused_already",)),
    "gpt_oss": Family(
        "GptOssConfig",
        "GptOssForCausalLM",
        {**ALTERNATING, "num_local_experts": 2, "num_experts_per_tok": 1},
        ("fused_sinks",) * 2,
        None,
    ),
    "bloom": Family(
        "BloomConfig", "BloomForCausalLM", {**SMALL_NAMES, "hidden_size": 64}, fused=None
    ),
}


def build(family: Family, attention: str) -> torch.nn.Module:
    """Return the model with random weights in float32, in evaluation."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**family.sizes, use_cache=False)
    model = getattr(transformers, family.model)._from_config(config, attn_implementation=attention)
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= family.scale_of_weights**0.5
    return model.eval()


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy that computes in float64, where grouped products of experts have no kernel."""
    wide: Any = copy.deepcopy(model).double()
    wide.config._experts_implementation = "eager"
    return wide


def result(output: Any) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    return output.logits if hasattr(output, "logits") else output.last_hidden_state
