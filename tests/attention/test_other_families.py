"""Attention of real models that read no tokens is found, and their results are eager's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra 'models'")

from tests.attention.families import in_float64  # noqa: E402
from tests.attention.rewriting import rewrite  # noqa: E402


@dataclass(frozen=True)
class Model:
    """Of ``transformers``, by the names of its classes, under eager attention."""

    name: str
    sizes: dict[str, Any]
    size: tuple[int, ...]
    """Of what it is given."""
    codes: tuple[str, ...] = ("fused",)


SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
MODELS = {
    "positions of height and width": Model(
        "VitDet",
        {**SIZES, "image_size": 32, "patch_size": 8, "use_relative_position_embeddings": True},
        (2, 3, 32, 32),
    ),
    "a module whose weights nobody reads": Model(
        "WavLM",
        {
            **SIZES,
            "intermediate_size": 64,
            "conv_dim": [16] * 3,
            "conv_stride": [5, 4, 4],
            "conv_kernel": [10, 8, 4],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        },
        (2, 4000),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_a_family(name):
    family = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family.name}Config")(**family.sizes)
    kind = getattr(transformers, f"{family.name}Model")
    model = kind._from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.ndim > 1:  # VitDet's positions begin as zeros
            weight.data.normal_(std=0.1)
    given = torch.randn(family.size)
    with torch.no_grad():
        done = rewrite(lambda x: model(x).last_hidden_state, given)
        found, eager = done.function(given), model(given).last_hidden_state
        wide = in_float64(model)(given.double()).last_hidden_state
    assert done.codes == list(family.codes)
    errors = [(value - wide).norm() / wide.norm() for value in (found, eager)]
    assert errors[0] <= max(2 * errors[1], 1e-6)
