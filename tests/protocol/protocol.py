"""What the counter protocol says, and the GEMM and launches for which it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

STORES = ("store", "tma_store")
"""A TMA store is visible at a moment that neither a barrier nor a release of its CTA orders."""


@dataclass(frozen=True)
class Protocol:
    """What the code does, by the names that it has in ``codegen/templates/signal.py``."""

    tile: tuple[str, ...] = ("store", "debug_barrier", "atomic_add")
    """What every warp does for a tile, in this order; only the first warp of a CTA adds."""
    late: bool = False
    """Whether the add is of the tile before, and one more comes behind a CTA's last tile."""
    releases: bool = True
    """Whether the add is a release at device scope."""
    compare: str = ">="
    """How the waiter compares the counter with its target."""
    acquires: bool = True
    """Whether the loads of a collective stay behind the waiter's."""
    zeroed: str = "before"
    """The counters: ``before`` the GEMM on its stream, ``beside`` it, or ``never``."""
    forks: bool = True
    """Whether the communication stream waits for the zeroing."""
    joins: bool = True
    """Whether the computing stream waits for the last collective before it goes on."""


@dataclass(frozen=True)
class Scenario:
    """A GEMM, its groups, and how it is launched."""

    ctas: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,))
    """Tiles of each CTA, one after another."""
    groups: tuple[int, ...] = (0, 0, 1)
    """Group of each tile."""
    announced: tuple[int, ...] | None = None
    """Group whose counter each tile bumps; its own where none is given."""
    warps: int = 2
    """Of one CTA."""
    stores: int = 1
    """Of one warp for one tile."""
    launches: int = 2
    """One after another on the same memory, as replays of a captured graph are."""
    runs: int = 1
    """Of the GEMM in one launch; with more than one, nothing waits before the last has ended."""

    @property
    def places(self) -> int:
        """Places in memory: one for each store of a warp."""
        return len(self.groups) * self.warps * self.stores

    @property
    def targets(self) -> tuple[int, ...]:
        """Tiles of each group."""
        return tuple(self.groups.count(group) for group in range(max(self.groups) + 1))

    def stored(self, tile: int, warp: int) -> range:
        """The places to which a warp stores its part of a tile."""
        first = (tile * self.warps + warp) * self.stores
        return range(first, first + self.stores)

    @cached_property
    def sent(self) -> tuple[frozenset[int], ...]:
        """The places that the collective of each group sends."""
        pairs = [(tile, warp) for tile in range(len(self.groups)) for warp in range(self.warps)]
        return tuple(
            frozenset(p for t, w in pairs if self.groups[t] == group for p in self.stored(t, w))
            for group in range(len(self.targets))
        )


class Step(NamedTuple):
    """One step of a warp."""

    name: str
    where: int
    """Place of a store, number of a barrier in its CTA, or counter of an add."""
    after: int = 0
    """Bits of the stores that must be visible before an add that releases."""


def programs(protocol: Protocol, scenario: Scenario) -> tuple[tuple[Step, ...], ...]:
    """The steps of each warp, CTA after CTA."""
    found: list[tuple[Step, ...]] = []
    for tiles in scenario.ctas:
        first, *others = [_steps(protocol, scenario, tiles, w) for w in range(scenario.warps)]
        if protocol.releases:
            first = [_releasing(first, at, others) for at in range(len(first))]
        found += [tuple(steps) for steps in (first, *others)]
    return tuple(found)


def _steps(protocol: Protocol, scenario: Scenario, tiles: tuple[int, ...], warp: int) -> list[Step]:
    announced = scenario.announced or scenario.groups
    steps: list[Step] = []
    adds = [Step("atomic_add", announced[tile]) for tile in tiles] if warp == 0 else []
    behind = adds[-1:] if protocol.late else []
    for number, tile in enumerate(tiles):
        for name in protocol.tile:
            if name in STORES:
                steps += [Step(name, place) for place in scenario.stored(tile, warp)]
            elif name == "debug_barrier":
                steps.append(Step(name, number))
            else:
                at = number - protocol.late
                steps += adds[at : at + 1] if at >= 0 else []
    return steps + behind


def _releasing(steps: list[Step], at: int, others: list[list[Step]]) -> Step:
    """Tell an add what its release orders: its warp's stores, and all before a barrier."""
    if steps[at].name != "atomic_add":
        return steps[at]
    before = steps[:at]
    passed = [step for step in before if step.name == "debug_barrier"]
    for other in others if passed else []:
        before = before + other[: other.index(passed[-1])]
    return steps[at]._replace(after=sum(1 << s.where for s in before if s.name == "store"))
