"""The one string argument that tells an inserted op everything its tensors do not."""

from __future__ import annotations

from dataclasses import dataclass, fields

from overlapc.errors import KernelError


@dataclass(frozen=True)
class ChainSpec:
    """What an op in place of a chain has to know. Its text is canonical: equal iff the specs are.

    The text travels inside compiled artifacts, which outlive the process that wrote them.
    """

    target: str
    """Fingerprint of the target that plans are made for."""
    options: str
    """Hash of the options, for the members of the group to compare."""
    schedule: str = "auto"
    """"auto" or the schedule that the user forced."""
    reduce: str = "sum"
    """The reduction, as c10d spells it."""
    site: str = ""
    """Identifier of the site, under which calls are counted."""
    verify: bool = False
    """Compare sizes across ranks before every call."""
    wait_seconds: float = 60.0
    """How long members wait for each other when they compare."""

    def text(self) -> str:
        """Return ``name=value`` of every field, in the order of the fields."""
        return ";".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @classmethod
    def parse(cls, text: str) -> ChainSpec:
        """Read what ``text()`` wrote; ``KernelError`` for anything else."""
        pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
        if tuple(pairs) != tuple(field.name for field in fields(cls)):
            raise KernelError(
                f"{text!r} is no specification of a chain.",
                where="an op of overlapc in a compiled graph",
                remedy="clear Inductor's cache: the artifact comes from another version",
            )
        return cls(
            target=pairs["target"],
            options=pairs["options"],
            schedule=pairs["schedule"],
            reduce=pairs["reduce"],
            site=pairs["site"],
            verify=pairs["verify"] == "True",
            wait_seconds=float(pairs["wait_seconds"]),
        )
