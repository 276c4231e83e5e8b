"""The golden fixture itself: what it keeps, where, and that a difference fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import conftest


@pytest.fixture
def scratch(golden, tmp_path):
    return replace(golden, path=tmp_path / "deep" / "text.txt", update=False)


def test_path_follows_the_test(golden):
    end = ("golden", "test_golden", "test_path_follows_the_test.txt")
    assert golden.path.parts[-3:] == end


@pytest.mark.parametrize("text", ["a/b c"])
def test_path_of_a_parameter_is_a_plain_name(golden, text):
    assert golden.path.name == "test_path_of_a_parameter_is_a_plain_name-a-b-c.txt"


def test_updated_text_is_accepted(scratch):
    replace(scratch, update=True)("one\ntwo")
    scratch("one\ntwo\n")


def test_a_different_text_fails_with_the_difference(scratch):
    replace(scratch, update=True)("one\ntwo")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)-two.*\+three"):
        scratch("one\nthree")


def test_a_missing_text_fails(scratch):
    with pytest.raises(pytest.fail.Exception, match="--update-golden"):
        scratch("one")


def test_texts_of_one_test_are_kept_apart(scratch):
    update = replace(scratch, update=True)
    update("one", "before")
    update("two", "after")
    scratch("one", "before")
    scratch("two", "after")


GRAPH = "=== backward, after\n%0 = input\n%1 = aten.sigmoid.default(%0)\n--- backward: rewritten"


@pytest.mark.parametrize("is_pinned", [True, False])
def test_on_another_torch_only_what_was_decided_is_compared(scratch, monkeypatch, is_pinned):
    """Its decompositions differ, and so do the lines of graphs."""
    monkeypatch.setattr(conftest, "is_pinned_torch", lambda: True)
    replace(scratch, update=True)(GRAPH)
    monkeypatch.setattr(conftest, "is_pinned_torch", lambda: is_pinned)
    otherwise = GRAPH.replace("sigmoid.default(%0)", "reciprocal.default(%0)\n%2 = aten.mul")
    if is_pinned:
        with pytest.raises(pytest.fail.Exception, match="reciprocal"):
            scratch(otherwise)
    else:
        scratch(otherwise)
        with pytest.raises(pytest.fail.Exception, match="graphs are kept as"):
            replace(scratch, update=True)(otherwise)
    for wrong in (GRAPH.replace("rewritten", "kept"), GRAPH.replace("after", "after: unchanged")):
        with pytest.raises(pytest.fail.Exception, match="differs"):
            scratch(wrong)
