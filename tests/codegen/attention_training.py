"""Programs compiled with attention of our own that want gradients, in Triton's interpreter.

Runs in a process of the ``interpreted`` fixture.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch

import overlapc
from tests.attention import catalogue
from tests.codegen.attention_graphs import PROGRAMS

PROGRAMS = {
    **PROGRAMS,
    "in a checkpoint": (catalogue.in_checkpoint, catalogue.plain),
    "in a selective checkpoint": (catalogue.in_selective_checkpoint, catalogue.plain),
}
WIDE = {"in a selective checkpoint": catalogue.operators}
"""What is computed in float64, where that is not the program itself."""


def run(name: str, choice: str, *leaves: int) -> tuple[Any, ...]:
    """Decision, code, calls, reason and redone rows of the one site, and the largest error against
    float64.

    ``leaves`` are the arguments of which a gradient is wanted: by default q, k and v.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    function, make = PROGRAMS[name]
    inputs = make()
    before = len(overlapc.report().sites)
    compiled: Any = torch.compile(function, backend="overlapc", options={"softmax": choice})
    places = leaves or (0, 1, 2)
    found = _gradients(compiled, inputs, places)
    wide = [t.detach().double() if t.is_floating_point() else t for t in inputs]
    wanted = _gradients(WIDE.get(name, function), wide, places)
    (site,) = overlapc.report().sites[before:]
    errors = []
    for one, other, place in zip(found, wanted, places, strict=True):
        assert one.dtype == inputs[place].dtype
        torch.testing.assert_close(one.isnan(), other.isnan())
        size = 1 + other.nan_to_num(0.0).abs().max()
        errors.append(((one.double() - other).abs().nan_to_num(0.0).max() / size).item())
    return site.decision, site.code, dict(site.calls), site.reason, site.redone_rows, max(errors)


def _gradients(
    function: Any, inputs: list[torch.Tensor], places: tuple[int, ...]
) -> list[torch.Tensor]:
    """Gradients of a sum with random weights, the result itself first."""
    leaves = [t.detach().requires_grad_(i in places) for i, t in enumerate(inputs)]
    result = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(result.shape, generator=generator).to(result.dtype)
    return list(torch.autograd.grad(result, [leaves[i] for i in places], weights))


def seen_by_policy(choice: str) -> tuple[dict[str, int], float, set[str]]:
    """Calls and error as of ``run``, and the ops that a selective policy was asked about."""
    catalogue.SEEN.clear()
    _, _, calls, _, _, error = run("in a selective checkpoint", choice)
    return calls, error, {name for _, name in catalogue.SEEN}


def family(name: str, attention: str, padded: bool) -> tuple[list[str], dict[str, int], float]:
    """Codes and calls of the sites of a model that is trained, and the largest error of the
    gradient of a parameter against eager in float64, relative to the largest element of it.

    ``padded`` on the left, against float32.
    """
    from tests.attention import families

    torch._dynamo.reset()
    model = families.build(families.FAMILIES[name], attention)
    tokens = torch.randint(0, families.VOCABULARY, (families.TOKENS, families.LENGTH))
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :3] = 0
    # A graph that another case has compiled is there already.
    before = {site.id: Counter(site.calls) for site in overlapc.report().sites}
    compiled: Any = torch.compile(model, backend="overlapc", options={"softmax": "unified"})
    # In float64 eager gives rows of padding NaN: the mask of a model is the least of float32.
    wide = copy.deepcopy(model) if padded else families.in_float64(model)
    for own in (compiled, wide):
        logits = families.result(own(tokens, attention_mask=mask))
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        (logits * weights * mask[..., None]).sum().backward()
    errors = [
        ((one.grad.double() - other.grad).abs().max() / (1e-3 + other.grad.abs().max())).item()
        for one, other in zip(model.parameters(), wide.parameters(), strict=True)
        if one.grad is not None and other.grad is not None
    ]
    calls: Counter[str] = Counter()
    codes = []
    for site in overlapc.report().sites:
        if more := Counter(site.calls) - before.get(site.id, Counter()):
            codes.append(site.code)
            calls.update(more)
    assert len(errors) > 5
    return codes, dict(calls), max(errors)
