"""The Llama that is run end to end, in both ways to shard it, and what one run of it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import LlamaForCausalLM

from examples.llama_model import SiteShape, batch, config, tensor_parallel, tokenizer

LAYERS = 2
SEQUENCES = 2
"""Half of the demo's layers and sequences, as a training step takes three times a prefill."""

LEARNING_RATE = 1e-4

Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What is timed."""

    sharding: str
    """One of ``SHARDINGS``."""
    trains: bool
    """A step of training; else a prefill."""

    def __str__(self) -> str:
        return f"{'training step' if self.trains else 'prefill'}, {self.sharding} parallel"


def tokens() -> torch.Tensor:
    """int64[SEQUENCES, 512], of the demo's text."""
    return batch()[:SEQUENCES]


def whole_model() -> LlamaForCausalLM:
    """Unsharded, float32, in evaluation mode; the same on every rank."""
    small = config(len(tokenizer()))
    small.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    return LlamaForCausalLM(small).eval()


def sequence_parallel(llama: LlamaForCausalLM, mesh: DeviceMesh) -> LlamaForCausalLM:
    """Shard in place over ``mesh``, the sequence between the blocks too.

    What a block reads is gathered along the sequence, and what it computes is reduce-scattered
    along it; the norms in between work on a rank's part of the sequence.
    """
    part: Placement = Shard(1)
    all_of_it: Placement = Replicate()
    plan: dict[str, ParallelStyle] = {
        "model.layers.0": PrepareModuleInput(
            input_layouts=(all_of_it,), desired_input_layouts=(part,), use_local_output=True
        ),
        "model.layers.*.self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": part},
            desired_input_kwarg_layouts={"hidden_states": all_of_it},
            use_local_output=True,
        ),
        "model.layers.*.mlp": PrepareModuleInput(
            input_layouts=(part,), desired_input_layouts=(all_of_it,), use_local_output=True
        ),
        "model.norm": PrepareModuleInput(
            input_layouts=(part,), desired_input_layouts=(all_of_it,), use_local_output=True
        ),
    }
    for norm in ("input_layernorm", "post_attention_layernorm"):
        plan[f"model.layers.*.{norm}"] = SequenceParallel(use_local_output=True)
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for name in (*attention, "mlp.gate_proj", "mlp.up_proj"):
        plan[f"model.layers.*.{name}"] = ColwiseParallel()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        plan[f"model.layers.*.{name}"] = RowwiseParallel(output_layouts=part)
    sharded = parallelize_module(llama, mesh, plan)
    assert isinstance(sharded, LlamaForCausalLM)
    return sharded


SHARDINGS = {"tensor": tensor_parallel, "sequence": sequence_parallel}

CASES = (
    Case("tensor", trains=False),
    Case("tensor", trains=True),
    Case("sequence", trains=False),
    Case("sequence", trains=True),
)


def compute(llama: LlamaForCausalLM, *, trains: bool) -> Run:
    """What a compiler is given: the loss over the tokens, or the logits of the last one."""

    def loss(ids: torch.Tensor) -> torch.Tensor:
        logits = llama(ids).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def last_logits(ids: torch.Tensor) -> torch.Tensor:
        return llama(ids, logits_to_keep=1).logits

    return loss if trains else last_logits


def results(llama: LlamaForCausalLM, run: Run, *, trains: bool) -> list[torch.Tensor]:
    """What a run computes from the weights as they are, to be compared: logits, or gradients."""
    if not trains:
        with torch.no_grad():
            return [run(tokens())]
    run(tokens()).backward()
    grads = [parameter.grad for parameter in llama.parameters()]
    llama.zero_grad()
    return [_local(grad).clone() for grad in grads if grad is not None]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def step(llama: LlamaForCausalLM, run: Run, *, trains: bool) -> Callable[[], torch.Tensor]:
    """What is timed: a prefill, or forward, loss, backward and optimizer."""
    ids = tokens()
    if not trains:

        def prefill() -> torch.Tensor:
            with torch.no_grad():
                return run(ids)

        return prefill
    optimizer = torch.optim.AdamW(llama.parameters(), lr=LEARNING_RATE)

    def training_step() -> torch.Tensor:
        loss = run(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return training_step


def prefill_sites(llama: LlamaForCausalLM, ranks: int) -> list[SiteShape]:
    """The row-parallel GEMMs of one tensor-parallel prefill, as they are on one rank."""
    c, rows = llama.config, tokens().numel()
    return [
        SiteShape("o_proj", rows, c.hidden_size, c.hidden_size // ranks, LAYERS),
        SiteShape("down_proj", rows, c.hidden_size, c.intermediate_size // ranks, LAYERS),
    ]
