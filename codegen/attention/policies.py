"""Where the number φ comes from that every score of a row is taken relative to, as data.

Softmax is the same whatever number is subtracted. With one that is known before the keys are read,
weights ``p = exp(score - φ)`` and sums need no running maximum and are never rescaled; what this
costs is that a row sum may leave the range in which weights are exact, which one check a row finds.
"""

from __future__ import annotations

from dataclasses import dataclass

ONLINE, RUNNING = "online", "running"


@dataclass(frozen=True)
class Policy:
    """One source of φ."""

    meaning: str
    takes: str = ""
    """What the kernel is given for it: "" nothing, "bound" a number of the spec, "phi" a float32
    tensor of one number a query head, "sinks" those of the attention."""
    is_own_score: bool = False
    """It is a score of the row itself, and so not above its maximum: whatever is lost beside it is
    lost beside that, and a row has no weight only where it sees no key."""


POLICIES = {
    ONLINE: Policy("the running maximum of the row, by which sums are rescaled; never redone"),
    "zero": Policy("zero"),
    "bound": Policy("a number known while compiling, such as a bound of the scores", "bound"),
    "head": Policy("a number for each query head, loaded: measured on other inputs", "phi"),
    RUNNING: Policy("a number for each query head, which launches before have left", "phi"),
    "sink": Policy("the sink of the head, which is a part of the sum itself", "sinks"),
    "first_tile": Policy("the maximum over the first keys that the row sees", is_own_score=True),
}


@dataclass(frozen=True)
class SafeSums:
    """Row sums of weights relative to φ at which the result is as exact as relative to the maximum.

    Weights are rounded to the dtype of the values before they are summed, so that one that
    overflowed makes the sum infinite.
    """

    least: float
    """Weights below the normal range are lost: beside it they are nothing, however many."""
    most: float
    """Nothing that is added up overflows where values are below 2^27; sums that did are found by a
    check of their own."""
    least_each: float = 0.0
    """The least sum for each key that the row sees: their mean has to be a normal number."""


SAFE_SUMS = {
    "float32": SafeSums(2.0**-80, 2.0**100),
    "bfloat16": SafeSums(2.0**-80, 2.0**100),
    # Of 2^-14, the least normal number, a mean weight keeps all its bits.
    "float16": SafeSums(2.0**-6, 2.0**100, 2.0**-14),
}
"""By the dtype of the weights, which is that of the values."""

LARGEST = {"float32": 2.0**127, "bfloat16": 2.0**127, "float16": 65504.0}
"""Weights up to which are numbers of the dtype."""
