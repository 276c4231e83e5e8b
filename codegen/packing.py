"""Packed order: tiles lie one after another as they complete, and a map says where elements are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError
from overlapc.planning.tiles import ATOM

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """C[m, n] as a buffer of tiles, in groups of consecutive ones that are announced, and sent.

    Where few tile rows hold many tiles, groups of tiles are finer than bands. Element (i, j) of C
    is ``buffer[map[i, j // ATOM] * ATOM + j % ATOM]``. Tiles at the edges are whole in the buffer;
    what of them is outside C is never written.
    """

    spec: GemmSpec
    m: int
    n: int
    tiles: tuple[int, ...]
    """Tiles of each group, in the order in which they complete."""

    def __post_init__(self) -> None:
        self._require(self.spec.order == "packed", "the kernel packs")
        self._require(self.n % ATOM == 0, f"C has a multiple of {ATOM} columns")
        whole = bool(self.tiles) and all(count > 0 for count in self.tiles)
        total = self._tiles_m * self._tiles_n
        self._require(whole and sum(self.tiles) == total, f"groups hold all {total} tiles, each >0")

    @classmethod
    def of(cls, spec: GemmSpec, m: int, n: int, tiles: Sequence[int]) -> Packing:
        """The packing of C[m, n] into groups of so many tiles."""
        return cls(spec, m, n, tuple(tiles))

    @property
    def elements(self) -> int:
        """Of the buffer."""
        return sum(self.tiles) * self.spec.block_m * self.spec.block_n

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The elements of the buffer of each group."""
        size = self.spec.block_m * self.spec.block_n
        ends = list(accumulate(self.tiles))
        starts = [0, *ends]
        return tuple(slice(at * size, end * size) for at, end in zip(starts, ends, strict=False))

    @property
    def targets(self) -> tuple[int, ...]:
        """What each counter reads when its group is complete."""
        return self.tiles

    @cached_property
    def table(self) -> tuple[int, ...]:
        """What the kernel reads (int32): the group of each tile, in the order of computation."""
        return tuple(group for group, count in enumerate(self.tiles) for _ in range(count))

    def map(self, device: str = "cpu") -> Tensor:
        """int32[m, n / ATOM]: where each atom of C lies in the buffer, counted in atoms."""
        import torch

        spec = self.spec
        places = torch.empty(self._tiles_m, self._tiles_n, dtype=torch.int64)
        position = torch.arange(sum(self.tiles))
        places[self._tile_at(position)] = position
        row, column = torch.arange(self.m), torch.arange(0, self.n, ATOM)
        tile = places[row[:, None] // spec.block_m, column[None, :] // spec.block_n]
        inside = (row % spec.block_m)[:, None] * spec.block_n + column % spec.block_n
        atoms = (tile * spec.block_m * spec.block_n + inside) // ATOM
        return atoms.to(torch.int32).to(device)

    def _tile_at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """As ``tile_in_run`` of the template."""
        full = self.spec.sweep * self._tiles_n
        sweep, inside = position // full, position % full
        height = (self._tiles_m - sweep * self.spec.sweep).clamp(max=self.spec.sweep)
        return sweep * self.spec.sweep + inside % height, inside // height

    @property
    def _tiles_m(self) -> int:
        return -(-self.m // self.spec.block_m)

    @property
    def _tiles_n(self) -> int:
        return -(-self.n // self.spec.block_n)

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise KernelError(
                f"C cannot be packed unless {rule}.",
                where=f"C[{self.m}, {self.n}] in groups of {self.tiles} tiles, {self.spec}",
                remedy="use the band order",
            )


def identity_map(m: int, n: int, device: str = "cpu") -> Tensor:
    """The map of a C that is not packed: what the serial schedule gives to the same readers."""
    import torch

    return torch.arange(m * n // ATOM, dtype=torch.int32, device=device).view(m, n // ATOM)


def unpack(buffer: Tensor, places: Tensor) -> Tensor:
    """C[m, n], read through its map."""
    atoms = buffer.view(-1, ATOM)[places.flatten().long()]
    return atoms.reshape(places.shape[0], -1)
