"""Hugging Face models: a checkpoint of our own, loaded with ``tp_plan="auto"`` over gloo ranks."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'models'")
pytest.importorskip("accelerate", reason="tp_plan='auto' needs accelerate")

from tests.targets import SLOW_LINK

OPTIONS = {"target": SLOW_LINK, "overlap": "chunked"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama of one layer, saved as transformers saves any other."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def computed(rank, folder, trains):
    """Errors against the whole model in float64, and what was done at each site."""
    from transformers import AutoModelForCausalLM

    import overlapc

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    split = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32)
    torch.manual_seed(1)
    tokens = torch.randint(0, 128, (2, 96))
    told = len(overlapc.report().sites)
    compiled = torch.compile(split, backend="overlapc", options=OPTIONS)

    with torch.set_grad_enabled(trains):
        found = compiled(tokens, labels=tokens, use_cache=False)
        wanted = whole(tokens, labels=tokens, use_cache=False)
    errors = [relative(found.logits, wanted.logits), relative(found.loss, wanted.loss)]
    if trains:
        found.loss.backward()
        wanted.loss.backward()
        name = "model.layers.0.input_layernorm.weight"
        errors.append(relative(split.get_parameter(name).grad, whole.get_parameter(name).grad))
    chains = [site for site in overlapc.report().sites[told:] if site.kind != "attention"]
    return errors, [(s.graph, s.decision, s.where, dict(s.calls)) for s in chains]


def relative(found, wanted):
    found = getattr(found, "full_tensor", lambda: found)()
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "trains",
    [False, pytest.param(True, marks=pytest.mark.long)],
    ids=["prefill", "training"],
)
def test_tp_plan_auto_is_right_and_is_rewritten(trains, two_ranks, checkpoint):
    for errors, sites in two_ranks.run(computed, checkpoint, trains, timeout=280):
        assert max(errors) < 1e-5
        rewritten = [site for site in sites if site[1] == "rewritten" and "layers" in site[2]]
        kind = "forward" if trains else "inference"
        forward = sorted(site[2].split()[0] for site in rewritten if site[0] == kind)
        assert forward == [
            "model.layers.0.mlp.down_proj",
            "model.layers.0.self_attn.o_proj",
        ]
        assert all(site[3] in ({}, {"chunked": 1}) for site in rewritten)  # merged ones make none
        assert any(site[0] == "backward" for site in rewritten) == trains
