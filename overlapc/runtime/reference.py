"""What every op means, in float64 and with c10d's functional collectives: the oracle of tests.

Shares with the ops neither the code of programs nor that of layouts, and is never a fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from overlapc.runtime.programs.execution import CASTS, trace
from overlapc.runtime.programs.program import Step
from overlapc.runtime.ranks.groups import resolve
from overlapc.runtime.spec import ChainSpec

aten = torch.ops.aten
functional = torch.ops._c10d_functional


def chain(
    spec: ChainSpec,
    operands: Sequence[torch.Tensor],
    outer: int = 1,
    receives: Sequence[int] = (),
    sends: Sequence[int] = (),
    group: str = "0",
) -> list[torch.Tensor]:
    """Return the results of the op ``spec.kind`` for the same arguments, in float64.

    Integers and complex numbers keep their dtype.
    """
    ranks = resolve(group).size()
    tensors = [_wide(tensor) for tensor in operands]
    if spec.is_consumer:
        tensors[0] = _gathered(spec, tensors[0], outer, ranks, receives, sends, group)
    values = trace(spec.program, tensors, _exactly)
    sent, *kept = (
        tensors[ref.index] if ref.is_operand else values[ref.index] for ref in spec.program.results
    )
    if spec.is_consumer:
        return [sent, *kept]
    return [_communicated(spec, sent, outer, ranks, receives, sends, group), *kept]


def _communicated(
    spec: ChainSpec,
    sent: torch.Tensor,
    outer: int,
    ranks: int,
    receives: Sequence[int],
    sends: Sequence[int],
    group: str,
) -> torch.Tensor:
    if spec.collective == "all_reduce":
        return _waited(functional.all_reduce(sent.contiguous(), spec.reduce, group))
    if not len(sends):
        sent = torch.cat(_of_each_rank(spec, sent, outer, ranks))
    if spec.collective == "reduce_scatter":
        return _waited(functional.reduce_scatter_tensor(sent, spec.reduce, ranks, group))
    return _exchanged(sent, ranks, receives, sends, group)


def _of_each_rank(
    spec: ChainSpec, tensor: torch.Tensor, outer: int, ranks: int
) -> list[torch.Tensor]:
    """The part of a tensor that is dealt out to each rank."""
    if spec.axis == 1:
        return list(tensor.chunk(ranks, 1))
    blocks = [block.chunk(ranks) for block in tensor.chunk(outer)]
    return [torch.cat([block[rank] for block in blocks]) for rank in range(ranks)]


def _gathered(
    spec: ChainSpec,
    mine: torch.Tensor,
    outer: int,
    ranks: int,
    receives: Sequence[int],
    sends: Sequence[int],
    group: str,
) -> torch.Tensor:
    """What the collective gives, and the parts of all ranks in the program's order."""
    if spec.collective == "all_gather":
        start = functional.all_gather_into_tensor
        come = _as_real(lambda sent: _waited(start(sent, ranks, group)), mine)
    else:
        come = _exchanged(mine, ranks, receives, sends, group)
    if len(sends):
        return come
    parts = come.chunk(ranks)
    if spec.axis == 1:
        return torch.cat(parts, 1)
    blocks = [part.chunk(outer) for part in parts]
    return torch.cat([block[at] for at in range(outer) for block in blocks])


def _exchanged(
    sent: torch.Tensor, ranks: int, receives: Sequence[int], sends: Sequence[int], group: str
) -> torch.Tensor:
    even = [sent.shape[0] // ranks] * ranks
    splits = list(receives or even), list(sends or even)
    start = functional.all_to_all_single
    return _as_real(lambda sent: _waited(start(sent, *splits, group)), sent)


def _as_real(move: Callable[[torch.Tensor], torch.Tensor], sent: torch.Tensor) -> torch.Tensor:
    """Move a tensor; gloo moves complex numbers only as pairs."""
    if not sent.is_complex():
        return move(sent.contiguous())
    return torch.view_as_complex(move(torch.view_as_real(sent.contiguous())))


def _waited(started: torch.Tensor) -> torch.Tensor:
    return functional.wait_tensor(started)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _exactly(
    step: Step, op: torch._ops.OpOverload, args: list[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor:
    """A step in float64: casts between floating dtypes round nothing."""
    del step
    if op in CASTS and args[0].is_floating_point():
        return args[0]
    if op == aten._scaled_mm.default:
        return _scaled_mm(*args, **kwargs)
    if op == aten._grouped_mm.default:
        return _grouped_mm(*args, **kwargs)
    return op(*args, **kwargs)


def _scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    *_: Any,
) -> torch.Tensor:
    product = (a * scale_a) @ (b * scale_b)
    return product if bias is None else product + bias


def _grouped_mm(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, *_: Any
) -> torch.Tensor:
    if offs is None:
        return torch.bmm(a, b)
    ends = offs.tolist()
    blocks = [a[start:end] @ w for start, end, w in zip([0, *ends], ends, b, strict=False)]
    return torch.cat(blocks)
