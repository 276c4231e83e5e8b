"""Linear layers of tensor-parallel models: which are chains', and that their ops send nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overlapc.passes import PIPELINE
from tests.passes.linear_spellings import (
    INNER,
    ROWS,
    WIDE,
    weight,
)
from tests.passes.test_dispatch_linears import shard, shard_inputs
from tests.targets import FAST_LINK, SLOW_LINK

pytestmark = pytest.mark.usefixtures("inference")


def kinds(explained, target, **options):
    result = explained(shard, *shard_inputs(), target=target, linear="flat", **options)
    return [(site.kind, site.decision) for site in result.report.sites]


def test_a_linear_layer_that_feeds_a_collective_is_its_chains(explained):
    """Who takes what: the chain its GEMM, and this pass the others."""
    linears = [("linear", "rewritten")] * 2
    only = {"disable": ("hide_collectives", "split_all_reduces")}
    assert kinds(explained, SLOW_LINK, **only) == [("gemm_all_reduce", "rewritten"), *linears]


def test_a_chain_that_is_kept_leaves_its_linear_layer(explained):
    only = {"disable": ("hide_collectives", "split_all_reduces")}
    sites = kinds(explained, FAST_LINK, **only)
    assert sites == [("gemm_all_reduce", "kept"), *[("linear", "rewritten")] * 3]


def test_the_chains_pass_comes_first():
    """The mutant that swaps them gives linear layers what a chain would take."""
    names = [one.name for one in PIPELINE]
    assert names.index("overlap_chains") < names.index("dispatch_linears")
    assert names.index("dispatch_linears") < names.index("order_collectives")


def test_an_op_of_linear_layers_is_no_collective(explained):
    """Nothing is put between it and its neighbours, and nobody compares what it sends."""
    only = {"disable": ("hide_collectives", "split_all_reduces"), "verify": True}
    result = explained(shard, *shard_inputs(), target=SLOW_LINK, linear="flat", **only)
    (_, after) = result.graphs["inference"]
    assert after.count("overlapc.linear.default(") == 2
    assert "control_deps" not in after


def test_nor_is_one_of_several_layers(explained):
    """Mutant: whatever is ours and not named as silent communicates, which ties the second op and
    the zeros of both to the first."""

    def two(x, z, q, k, g, h):
        return F.linear(x, q), F.linear(x, k), F.linear(z, g), F.linear(z, h)

    shapes = (ROWS, WIDE), (ROWS, WIDE), (INNER, WIDE), (16, WIDE), (INNER, WIDE), (16, WIDE)
    inputs = [weight(*shape, device="meta", dtype=torch.bfloat16) for shape in shapes]
    (_, after) = explained(two, *inputs, linear="flat").graphs["inference"]
    assert after.count("overlapc.linears.default(") == 2
    assert "control_deps" not in after
