"""The golden fixture itself: what it keeps, where, and that a difference fails."""

from __future__ import annotations

from dataclasses import replace

import pytest


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
