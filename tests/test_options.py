"""Options and environment variables: what is accepted, and what an unknown one is told."""

from __future__ import annotations

import pytest

from overlapc import options
from overlapc.errors import OptionError
from overlapc.options import Options
from tests.targets import FAST_LINK, SLOW_LINK


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("DUMP", "DISABLE", "FUEL", "VERIFY"):
        monkeypatch.delenv(f"OVERLAPC_{name}", raising=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tarjet": "cpu"}, "did you mean 'target'"),
        ({"max_autotune": True}, "goes into 'inductor': {'max_autotune': True}"),
        (
            {"mode": "max-autotune"},
            r"'inductor': torch._inductor.list_mode_options\('max-autotune'",
        ),
        ({"overlap": "chunkd"}, "did you mean 'chunked'"),
        ({"overlap": True}, "of type str"),
        ({"fuel": "3"}, "of type int"),
        ({"fuel": True}, "of type int"),
        ({"verify": 1}, "of type bool"),
        ({"target": 3}, "of type str or Target"),
        ({"inductor": ["max_autotune"]}, "of type Mapping"),
        ({"disable": "all"}, "of type tuple"),
        ({"agreement_seconds": 0}, "above zero"),
        ({"agreement_seconds": float("nan")}, "above zero"),
        ({"fuel": -5}, "-1 for no limit"),
        ({"dump": "/proc/nope"}, "can be written to"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(given, said):
    with pytest.raises(OptionError, match=said):
        options.from_user(given)


@pytest.mark.parametrize(
    ("variable", "value", "field", "wanted"),
    [
        ("OVERLAPC_DUMP", "/tmp", "dump", "/tmp"),
        ("OVERLAPC_DISABLE", "one, two", "disable", ("one", "two")),
        ("OVERLAPC_FUEL", "7", "fuel", 7),
        ("OVERLAPC_VERIFY", "yes", "verify", True),
        ("OVERLAPC_VERIFY", "0", "verify", False),
    ],
)
def test_the_environment_sets_what_options_do_not(variable, value, field, wanted, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert getattr(options.from_user({}), field) == wanted
    explicit = {"dump": "/var/tmp", "disable": ("three",), "fuel": 1, "verify": not wanted}[field]
    assert getattr(options.from_user({field: explicit}), field) == explicit


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OVERLAPC_FUEL", "many", "whole number"),
        ("OVERLAPC_VERIFY", "perhaps", "neither true nor false"),
        ("OVERLAPC_DUMPS", "/d", "did you mean 'OVERLAPC_DUMP'"),
    ],
)
def test_a_wrong_variable_is_an_error(variable, value, said, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(OptionError, match=said):
        options.from_user(None)


def test_the_key_tells_every_choice_apart_but_the_dump():
    base = Options(target=SLOW_LINK)
    others = [
        Options(target=FAST_LINK),
        Options(target="cpu"),
        Options(target=SLOW_LINK, overlap="chunked"),
        Options(target=SLOW_LINK, fuel=1),
        Options(target=SLOW_LINK, disable=("all",)),
        Options(target=SLOW_LINK, verify=True),
        Options(target=SLOW_LINK, inductor={"max_autotune": True}),
        Options(target=SLOW_LINK, agreement_seconds=1.0),
        Options(target=SLOW_LINK, linear="off"),
        Options(target=SLOW_LINK, softmax="off"),
    ]
    assert len({option.key() for option in (base, *others)}) == len(others) + 1
    assert Options(target=SLOW_LINK, dump="/d").key() == base.key()


def test_an_unknown_inductor_name_is_told_the_nearest():
    from overlapc.backend import inductor_patches

    with pytest.raises(OptionError, match="max_autotune"):
        inductor_patches(Options(inductor={"max_autotun": True}), None)
    assert inductor_patches(Options(inductor={"max_autotune": True}), None)["max_autotune"] is True


def test_a_mode_may_stand_among_options_as_its_remedy_says():
    """torch.compile takes a mode or options, so that beside options a mode is Inductor's own."""
    import torch

    from overlapc.backend import inductor_patches

    of_mode = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
    assert of_mode
    patches = inductor_patches(options.from_user({"inductor": of_mode}), None)
    assert patches == inductor_patches(Options(), "max-autotune-no-cudagraphs")
