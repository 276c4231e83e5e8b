"""What programs are drawn from: the lines of ``random_programs.txt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """Statements that can stand for each other, `<...>` in them for names and sizes."""

    usual: tuple[str, ...]
    """Those that models have; all, where none are told apart."""
    all: tuple[str, ...]


def read_kinds() -> dict[str, Kind]:
    """Return all kinds by their names."""
    text = Path(__file__).with_name("random_programs.txt").read_text()
    kinds = {}
    for part in text.split("\n[")[1:]:
        head, _, body = part.partition("\n")
        usual, _, others = body.partition("\n---\n")
        every = [[line for line in lines.splitlines() if line] for lines in (usual, others)]
        kinds[head.partition("]")[0]] = Kind(tuple(every[0]), (*every[0], *every[1]))
    return kinds


KINDS = read_kinds()
RARE = [(name, line) for name, kind in KINDS.items() for line in kind.all
        if line not in kind.usual or kind.usual == kind.all]  # fmt: skip
"""By their kinds, all statements but those of models that have others of their kind."""
SHAPES = ("B, H, Q, K", "B, 1, Q, K", "1, 1, Q, K", "B, 1, 1, K", "H, 1, K", "H, Q, K", "H, 1, 1",
          "Q, K", "Q, 1", "K", "1", "", "B, 1, Q, 1", "1, K")  # fmt: skip
"""Of masks."""
