"""A budget of wall-clock time."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """The wall-clock time by which a part of the benchmarks has to end."""

    ends: float
    """By ``time.monotonic``."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left; not below zero."""
        return max(self.ends - time.monotonic(), 0.0)

    def share(self, parts: int) -> Deadline:
        """The deadline of the next one of ``parts`` equal parts of what is left."""
        return Deadline.after(self.left() / max(parts, 1))
