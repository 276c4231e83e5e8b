"""A fault of ours costs a rewrite: the program is what it was, and its report says so."""

from __future__ import annotations

import pytest
import torch

from tests.attention import test_given_masks as masks
from tests.attention.catalogue import plain, square, twice
from tests.attention.rewriting import rewrite
from tests.attention.test_catalogue import assert_alike, wide
from tests.attention.test_modules import inputs, itself, made

FAULTS = {
    "scores": "overlapc.graphs.attention.matching.read_scores",
    "numbers": "overlapc.passes.rewrite_attention.problem_of",
    "decision": "overlapc.passes.rewrite_attention.decide",
    "prompts": "overlapc.passes.rewrite_attention._seen",
    "after calls were put in": "overlapc.graphs.attention.rewriting.as_spelled",
}
"""Where it may be: each fails where nobody catches it there."""


class Faulty:
    """Fails from one call on, up to another, and else is what it stands for."""

    def __init__(self, function, first=0, last=99):
        self.function, self.calls, self.faulty = function, 0, range(first, last)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls - 1 in self.faulty:
            raise ZeroDivisionError("of ours")
        return self.function(*args, **kwargs)


def break_it(monkeypatch, path, *when):
    module, _, name = path.rpartition(".")
    function = getattr(pytest.importorskip(module), name)
    monkeypatch.setattr(path, Faulty(function, *when))


def assert_reported(reason):
    assert reason.startswith("A fault of overlapc, which its log tells, please report it: Zero")


@pytest.mark.parametrize("name", FAULTS)
def test_the_graph_stays(name, monkeypatch):
    break_it(monkeypatch, FAULTS[name])
    torch.manual_seed(0)
    operands = square()
    done = rewrite(twice, *operands)
    assert done.codes == ["!internal", "!internal"]
    assert done.after == done.before
    for site in done.sites:
        assert_reported(site.reason)
    assert_alike(done.function(*operands), twice(*map(wide, operands)), torch.float32)


def test_the_other_sites_do_not_pay_for_it(monkeypatch):
    """The last site comes first. Fails where what was put in for it stays."""
    break_it(monkeypatch, FAULTS["after calls were put in"], 0, 1)
    torch.manual_seed(0)
    operands = plain()
    done = rewrite(twice, *operands)
    assert done.codes == ["fused", "!internal"]
    assert done.calls("scaled_dot_product_attention") == done.calls("softmax") == 1
    assert_alike(done.function(*operands), twice(*map(wide, operands)), torch.float32)


def test_an_op_of_ours_is_taken_out_again(monkeypatch):
    break_it(monkeypatch, "overlapc.graphs.attention.placing.as_spelled")
    given = *masks.operands(1, masks.KEYS), masks.mask_of(1, 100)
    with torch.no_grad():
        done = rewrite(masks.attend, *given)
        assert done.codes == ["!internal"]
        assert done.after == done.before
        torch.testing.assert_close(done.function(*given), masks.attend(*given))


def test_a_module_stays_one_call(monkeypatch):
    break_it(monkeypatch, "overlapc.graphs.attention.modules._forward")
    module = made()
    with torch.no_grad():
        done = rewrite(itself, module, *inputs(), softmax="sdpa")
    assert done.codes == ["!internal"]
    assert done.after == done.before
