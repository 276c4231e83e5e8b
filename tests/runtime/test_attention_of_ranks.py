"""Attention of models that two ranks train: replicated, and with some of the heads on each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import overlapc
from tests.attention.small_models import llama, prompts

OPTIONS = {"softmax": "sdpa"}


def replicated(model, rank):
    return DistributedDataParallel(model)


def by_heads(model, rank):
    """Keys have as many heads as ranks."""
    plan = {name: ColwiseParallel() for name in "qkv"} | {"o": RowwiseParallel()}
    for layer in model.layers:
        parallelize_module(layer, init_device_mesh("cpu", (2,)), plan)
    return model


SPLITS = {"replicated": replicated, "by_heads": by_heads}


def train(rank, name):
    """The largest error of a gradient against the whole model in float64, and attention sites."""
    torch._dynamo.reset()
    known = {site.id for site in overlapc.report().sites}
    whole = llama(1).double()
    split = SPLITS[name](copy.deepcopy(whole).float(), rank)
    inputs = prompts(24, 24)
    mine = inputs[rank] if name == "replicated" else inputs[0]
    compiled = torch.compile(split, backend="overlapc", options=OPTIONS)
    compiled(mine).square().mean().backward()
    for one in inputs if name == "replicated" else inputs[:1]:
        (whole(one).square().mean() / (2 if name == "replicated" else 1)).backward()
    errors = []
    for at, parameter in split.named_parameters():
        found = getattr(parameter.grad, "full_tensor", lambda grad=parameter.grad: grad)()
        wanted = whole.get_parameter(at.removeprefix("module.")).grad
        errors.append(((found - wanted).norm() / wanted.norm()).item())
    sites = [site for site in overlapc.report().sites if site.id not in known]
    return max(errors), [(s.decision, s.code, s.shape) for s in sites if s.kind == "attention"]


SHAPES = {"by_heads": "2x2/1x24x24x16 float32", "replicated": "2x4/2x24x24x16 float32"}


@pytest.mark.long
@pytest.mark.parametrize("name", SPLITS)
def test_ranks_train_right_and_their_attention_is_rewritten(two_ranks, name):
    """Mutant: another scale."""
    for error, sites in two_ranks.run(train, name):
        assert error < 1e-5
        assert sites == [("rewritten", "fused", SHAPES[name])]
