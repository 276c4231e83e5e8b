"""The one string argument that tells an op in place of a linear layer what its tensors do not."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

from overlapc.errors import KernelError
from overlapc.planning.linear.regions import Regions
from overlapc.planning.records import from_value, to_value
from overlapc.runtime.programs.program import Program, canonical
from overlapc.runtime.programs.settings import stated, with_defaults


@dataclass(frozen=True)
class LayerSpec:
    """A linear layer, what follows it, and which implementation computes how many rows.

    Its text is canonical: equal iff the specs are. It travels inside compiled artifacts.
    """

    program: Program
    """It keeps its results: one, or one of each layer of the same rows."""
    regions: Regions
    """By the rows of the call."""
    site: str = ""
    """Identifier of the site, under which calls are counted."""
    inductor: str = ""
    """What is set of Inductor's configuration, as ``settings.settings`` returns it."""

    def __post_init__(self) -> None:
        if self.program.sent is not None or not self.program.kept:
            raise ValueError("the program of a linear layer gives its results")

    @cached_property
    def key(self) -> str:
        """The text without the site: what two layers have in common that are computed alike."""
        return replace(self, site="").text()

    def text(self) -> str:
        """Return the specification as canonical JSON."""
        values = {
            "program": self.program.value(),
            "regions": to_value(self.regions),
            "site": self.site,
            "inductor": self.inductor,
        }
        return canonical(stated(values))

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> LayerSpec:
        """Read what ``text()`` wrote; ``KernelError`` for anything else."""
        try:
            values = with_defaults(json.loads(text))
            if set(values) != {field.name for field in fields(cls)}:
                raise ValueError("other fields")
            return cls(
                Program.from_value(values["program"]),
                from_value(Regions, values["regions"]),
                values["site"],
                values["inductor"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KernelError(
                f"{text!r} is no specification of a linear layer: {error}.",
                where="an op of overlapc in a compiled graph",
                remedy="clear Inductor's cache: the artifact comes from another version",
            ) from error
