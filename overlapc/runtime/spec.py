"""The one string argument that tells an inserted op everything its tensors do not."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from overlapc.errors import KernelError
from overlapc.planning.records import from_value, to_value
from overlapc.planning.tiles import Tile
from overlapc.runtime.programs.program import Program, canonical
from overlapc.runtime.programs.settings import stated, with_defaults

COLLECTIVE_OF = {
    "gemm_all_reduce": "all_reduce",
    "gemm_reduce_scatter": "reduce_scatter",
    "gemm_all_to_all": "all_to_all",
    "all_gather_gemm": "all_gather",
    "all_to_all_gemm": "all_to_all",
}
"""The collective of each kind of chain; an op is named after its kind."""

CONSUMERS = ("all_gather_gemm", "all_to_all_gemm")
"""The kinds whose collective comes first."""


@dataclass(frozen=True)
class ChainSpec:
    """What an op in place of a chain has to know. Its text is canonical: equal iff the specs are.

    The text travels inside compiled artifacts, which outlive the process that wrote them.
    """

    kind: str
    """A key of ``COLLECTIVE_OF``."""
    target: str
    """Fingerprint of the target that plans are made for."""
    options: str
    """Hash of the options, for the members of the group to compare."""
    program: Program
    """What is computed before the collective, or after it."""
    schedule: str = "auto"
    """"auto" or the schedule that the user forced."""
    reduce: str = "sum"
    """The reduction as c10d spells it, where there is one."""
    site: str = ""
    """Identifier of the site, under which calls are counted."""
    verify: bool = False
    """Compare sizes across ranks before every call."""
    wait_seconds: float = 60.0
    """How long members wait for each other when they compare."""
    place: str = ""
    """Line of the source that the chain comes from, and the layer's name: what they have in common
    and sends alike is planned once."""
    axis: int = 0
    """Dimension of ``[units, ...]`` that is scattered or gathered: 0, or 1 of every unit."""
    takes_map: bool = False
    """Whoever reads an all-reduce's result can read it where the tiles of a kernel lie."""
    inductor: str = ""
    """What is set of Inductor's configuration, as ``settings.settings`` returns it."""
    packed: Tile | None = None
    """The tiles that they read: the op gives the buffer of their ``PackedOrder``. None where they
    read rows."""

    def __post_init__(self) -> None:
        if self.kind not in COLLECTIVE_OF:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(COLLECTIVE_OF)}")
        if self.axis not in (0, 1):
            raise ValueError(f"axis is {self.axis}, not 0 or 1")
        if (self.program.sent is None) != self.is_consumer:
            raise ValueError("a producer's program says what is sent, and a consumer's does not")
        if self.packed and not (self.takes_map and self.collective == "all_reduce"):
            raise ValueError("only an all-reduce's result is read where tiles lie")

    @property
    def collective(self) -> str:
        """As `planning.problem` names it."""
        return COLLECTIVE_OF[self.kind]

    @property
    def is_consumer(self) -> bool:
        """Whether the collective comes first."""
        return self.kind in CONSUMERS

    @cached_property
    def key(self) -> str:
        """The text without the site: what two calls have in common that are planned alike."""
        return replace(self, site="").text()

    @cached_property
    def role(self) -> str:
        """The text without what follows from a graph: other ranks may have compiled another."""
        values = json.loads(self.key)
        for name in ("program", "takes_map", "inductor", "packed"):
            values.pop(name, None)
        return canonical(values)

    def text(self) -> str:
        """Return the specification as canonical JSON."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values.update(program=self.program.value(), packed=to_value(self.packed))
        return canonical(stated(values))

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> ChainSpec:
        """Read what ``text()`` wrote; ``KernelError`` for anything else."""
        try:
            values = with_defaults(json.loads(text))
            if set(values) != {field.name for field in fields(cls)}:
                raise ValueError("other fields")
            values["program"] = Program.from_value(values["program"])
            if values["packed"] is not None:
                values["packed"] = from_value(Tile, values["packed"])
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KernelError(
                f"{text!r} is no specification of a chain: {error}.",
                where="an op of overlapc in a compiled graph",
                remedy="clear Inductor's cache: the artifact comes from another version",
            ) from error
