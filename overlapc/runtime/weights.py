"""Which weights a graph is called with: hashes that tell models, and fine-tunes of one, apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

SAMPLED = 64
"""Elements of each weight whose places count as well; chosen."""
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_in(inputs: Iterable[object]) -> list[torch.nn.Parameter]:
    """Return the parameters among the inputs of a graph of Dynamo's."""
    return [value for value in inputs if isinstance(value, torch.nn.Parameter)]


def structure_of(weights: Sequence[torch.Tensor]) -> str:
    """Return a hash of sizes and dtypes, in whatever order and under whatever names."""
    return _hash(_sizes(weight) for weight in weights)


def content_of(weights: Sequence[torch.Tensor]) -> str:
    """Return a hash that changes with every element; empty where a weight holds nothing to read.

    Of each weight it takes the sum of all elements' bits and some elements by their places, so that
    it costs one read of the memory; rows that change places may go unseen.
    """
    with unset_fake_temporarily(), torch.no_grad():
        if any(not is_readable(weight) for weight in weights):
            return ""
        return _hash(f"{_sizes(weight)} {_digest(weight.detach())}" for weight in weights)


def is_readable(weight: torch.Tensor) -> bool:
    """Return whether a weight holds numbers of its own that can be read here."""
    is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return is_plain and not isinstance(weight, FakeTensor) and not weight.is_meta


def _sizes(weight: torch.Tensor) -> str:
    return f"{list(weight.shape)} {weight.dtype}"


def _digest(weight: torch.Tensor) -> str:
    if not weight.numel():
        return ""
    bits = weight.contiguous().view(-1).view(BITS[min(weight.element_size(), 8)])
    places = torch.arange(SAMPLED, device=bits.device) * (len(bits) - 1) // (SAMPLED - 1)
    return f"{bits.sum(dtype=torch.int64).item()} {bits[places].tolist()}"


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:12]
