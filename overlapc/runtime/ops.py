"""The ops that stand in a compiled graph in place of a chain: schemas, fakes, implementations.

An op is self-contained: its tensors, the name of its group and one specification say everything,
for on a warm cache no pass of ours has run in the process that calls it. Which collectives it
sends, and in how many pieces, depends on the plan and so on sizes and target only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.fx.node import has_side_effect

from overlapc.runtime import shapes
from overlapc.runtime.callers import Caller
from overlapc.runtime.preparing import Chain
from overlapc.runtime.programs.fusing import why_in_steps
from overlapc.runtime.ranks import groups
from overlapc.runtime.spec import COLLECTIVE_OF, ChainSpec
from overlapc.sources import fingerprint_of_sources

SCHEMA = (
    "(Tensor[] operands, SymInt outer, SymInt[] receives, SymInt[] sends, str group, str spec)"
    " -> Tensor[]"
)
"""``operands`` are those of the spec's program. ``outer`` is how many blocks of dimension 0 are
scattered or gathered by themselves. ``receives`` and ``sends`` are the rows of an all-to-all from
and to each rank; both are empty where it is even on every rank. A producer returns what its
collective gives and what its program keeps, a consumer what its program keeps."""

_library = torch.library.Library("overlapc", "DEF")

# By group, and without holding it: a group that is destroyed takes its callers along.
_callers: WeakKeyDictionary[dist.ProcessGroup, dict[str, Caller]] = WeakKeyDictionary()
_chains: WeakKeyDictionary[dist.ProcessGroup, dict[str, Chain]] = WeakKeyDictionary()


class Calls(Counter[str]):
    """A Counter whose items are set as a dict's are: beside a deletion in Python, as a Counter has
    one, each assignment is looked up by name."""

    __delitem__ = dict.__delitem__  # pyright: ignore[reportAssignmentType]


_calls: dict[str, Counter[str]] = {}
_by_library: dict[str, Counter[str]] = {}
_specs: dict[str, ChainSpec] = {}


def calls_of(site: str) -> Counter[str]:
    """Return how often a site ran each schedule in this process; replays of CUDA graphs do not
    come by here."""
    return _calls.setdefault(site, Calls())


@contextmanager
def uncounted() -> Iterator[None]:
    """What is called within counts for no site."""
    before = {site: dict(calls) for site, calls in _calls.items()}
    try:
        yield
    finally:
        for site, calls in _calls.items():
            calls.clear()
            calls.update(before.get(site, {}))


def by_library_of(site: str) -> Counter[str]:
    """Return how often the library computed what a site's plan wanted signaled, by the reason."""
    return _by_library.setdefault(site, Counter())


def why_in_steps_of(site: str) -> str:
    """Return why steps of a site that could be one kernel ran one by one; empty if none did."""
    spec = _specs.get(site)
    return why_in_steps(spec.program, spec.inductor) if spec else ""


def choices_text(options: str, target: str) -> str:
    """Return what the members of a group compare: our sources, their options and target."""
    return f"sources={fingerprint_of_sources()} options={options} target={target}"


def run(
    operands: list[torch.Tensor],
    outer: int,
    receives: Sequence[int],
    sends: Sequence[int],
    group: str,
    spec: str,
) -> list[torch.Tensor]:
    living = groups.resolve(group)
    caller = _callers.setdefault(living, {}).get(spec) or _new_caller(living, spec)
    return caller(living, operands, outer, tuple(receives), tuple(sends))


def _fake(
    operands: list[torch.Tensor],
    outer: int,
    receives: Sequence[int],
    sends: Sequence[int],
    group: str,
    spec: str,
) -> list[torch.Tensor]:
    return shapes.results(ChainSpec.parse(spec), operands, receives, groups.resolve(group).size())


def _new_caller(group: dist.ProcessGroup, text: str) -> Caller:
    spec = ChainSpec.parse(text)
    groups.agree_once(group, choices_text(spec.options, spec.target), spec.wait_seconds)
    chains = _chains.setdefault(group, {})
    if spec.key not in chains:
        chains[spec.key] = Chain.of(spec)
    _specs[spec.site] = spec
    counts = calls_of(spec.site), by_library_of(spec.site)
    caller = _callers[group][text] = Caller(chains[spec.key], *counts)
    return caller


def _register(kind: str) -> None:
    # Inductor may not change the order of strides: a weight is most often a transposed view.
    # needs_exact_strides would do nothing for a node that a pass puts in.
    _library.define(f"{kind}{SCHEMA}", tags=(torch.Tag.needs_fixed_stride_order,))
    _library.impl(kind, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"overlapc::{kind}", _fake, lib=_library)
    # Like a wait of c10d: a rank that drops a collective whose result it does not read hangs its
    # peers.
    has_side_effect(getattr(torch.ops.overlapc, kind).default)


for _kind in COLLECTIVE_OF:
    _register(_kind)
