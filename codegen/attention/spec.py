"""Everything that decides what one generated attention computes, and how its softmax is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from overlapc.codegen.attention.policies import ONLINE, POLICIES, RUNNING, SAFE_SUMS, SafeSums
from overlapc.codegen.epilogue import Epilogue, Input
from overlapc.codegen.records import Canonical
from overlapc.planning.attention.tile_names import PLANNED, TILES

DTYPES = tuple(SAFE_SUMS)
MOST_DIM = 576
"""Of a head: that of latent attention, of which a decode kernel holds 16 rows in registers."""
ALIGNMENTS = ("top_left", "bottom_right")
DEAD = ("nan", "zero")
PRECISIONS = ("ieee", "tf32x3", "tf32")


@dataclass(frozen=True)
class AttentionSpec(Canonical):
    """``softmax(program(scale * Q @ K^T) + structure) @ V`` of one head after another.

    Q[batch, groups * heads, rows, head_dim], K[batch, heads, keys, head_dim], V[batch, heads, keys,
    value_dim], of any strides. ``str(spec)`` is its canonical one-line text and
    ``AttentionSpec.parse`` reads it back. Sizes of batch, heads, rows and keys are no part of it.
    """

    KIND: ClassVar[str] = "attention"
    NEEDS: ClassVar[str] = "No attention can be generated"
    REMEDY: ClassVar[str] = "change that field, or use torch's scaled_dot_product_attention"

    dtype: str
    """Name of the dtype of Q, K, V and the result: one of ``DTYPES``. Scores and sums are float32,
    weights are rounded to it before they meet V."""
    head_dim: int
    value_dim: int
    groups: int = 1
    """Query heads that share one head of keys: query head h reads head ``h // groups``."""
    scale: float = 1.0
    before: int | None = None
    """Keys that a row sees before its own; None: all."""
    after: int | None = None
    """Keys that it sees after its own: 0 is causal; None: all."""
    align: str = "top_left"
    """Which key is row r's own: ``top_left`` key r, ``bottom_right`` the key so far from the end of
    the sequence as the row is from the last row."""
    lengths: bool = False
    """Of each batch the first ``lengths[batch]`` keys are its sequence; int32, read on the device.
    One that is longer than there are keys is read as far as those go, and its rows stay where they
    stand in it."""
    program: str = ""
    """Text of the ``Epilogue`` whose ``aten.mm.default`` is the scaled product and whose last value
    is the score, all in float32; inputs broadcast over batch and heads. Masks that are tensors are
    calls of it. Empty: the scaled product."""
    sinks: bool = False
    """A score of each query head takes part in the softmax, and has no value."""
    softmax: str = "zero"
    """Where φ comes from: a key of ``POLICIES``."""
    bound: float = 0.0
    """φ, in terms of scores, where that is what the policy takes."""
    dead: str = "nan"
    """What a row gives that sees no key, or scores of minus infinity alone: ``nan`` as softmax
    does, or ``zero`` as torch's fused attention does."""
    lse: bool = True
    """Logarithms of sums are wanted beside the result, as a backward does."""
    precision: str = "ieee"
    """How float32 is multiplied: ``ieee``; ``tf32x3``, by matrix units in three parts, which lose
    little; ``tf32``, which rounds operands to 11 bits."""
    rounds: bool = False
    """Scores may be rounded to ``dtype`` before their softmax: the graph rounds them."""
    tile: str = PLANNED
    """Which tile a kernel takes, one of ``TILES``; of a name that its device has none of, that of
    ``PLANNED``."""

    def __post_init__(self) -> None:
        self.require(self.dtype in DTYPES, f"dtype is one of {', '.join(DTYPES)}")
        for name in ("head_dim", "value_dim"):
            dim = getattr(self, name)
            self.require(0 < dim <= MOST_DIM, f"{name} is of 1 to {MOST_DIM}")
        self.require(self.groups > 0, "groups is positive")
        self.require(math.isfinite(self.scale) and math.isfinite(self.bound), "numbers are finite")
        for name in ("before", "after"):
            extent = getattr(self, name)
            self.require(extent is None or extent >= 0, f"{name} is no negative number of keys")
        self.require(self.align in ALIGNMENTS, f"align is one of {ALIGNMENTS}")
        is_cut = self.before is not None or self.after is not None
        self.require(is_cut or self.align == ALIGNMENTS[0], "rows of all keys have no alignment")
        self.require(self.softmax in POLICIES, f"softmax is one of {', '.join(POLICIES)}")
        takes = POLICIES[self.softmax].takes
        self.require(takes == "bound" or self.bound == 0, "bound is for the policy that takes it")
        self.require(takes != "sinks" or self.sinks, "a policy of sinks has sinks")
        self.require(self.dead in DEAD, f"dead is one of {DEAD}")
        self.require(self.precision in PRECISIONS, f"precision is one of {PRECISIONS}")
        self.require(self.tile in TILES, f"tile is one of {', '.join(TILES)}")
        self.require(self.precision == "ieee" or self.dtype == "float32", "tf32 is for float32")
        if self.program:
            Epilogue.parse(self.program)

    @cached_property
    def scores(self) -> Epilogue | None:
        """What is done to the scaled product; None where that is the score."""
        return Epilogue.parse(self.program) if self.program else None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What scores are made of beside Q and K."""
        return self.scores.inputs if self.scores else ()

    @property
    def sums_dtype(self) -> str:
        """Of logarithms of sums: of hundreds, in float32, rows of weights of float32 that a
        backward makes from them would add up to less or more than one by far more than eager's."""
        return "float64" if self.dtype == "float32" else "float32"

    @property
    def is_online(self) -> bool:
        """Whether a running maximum is kept."""
        return self.softmax == ONLINE

    @property
    def takes_phi(self) -> bool:
        """Whether a launch brings φ for each head."""
        return POLICIES[self.softmax].takes == "phi"

    @property
    def moves_phi(self) -> bool:
        """Whether a launch may change it, for those after it."""
        return self.softmax == RUNNING

    @property
    def safe_sums(self) -> SafeSums:
        """Where a row need not be redone."""
        safe = SAFE_SUMS[self.dtype]
        is_own = POLICIES[self.softmax].is_own_score
        return replace(safe, least=0.0, least_each=0.0) if is_own else safe
