"""What the op of linear layers costs a processor beyond the library call that it makes.

``python -m benchmarks.linear.dispatch`` (ten seconds) times it against the library call on operands
so small that nothing else counts: as a function, which is how code that Inductor generates calls it
(``overlapc/direct_calls.py``), and as an op through torch's dispatcher, as all else calls it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from benchmarks.measuring.paired import Alone, Samples, measure
from overlapc.planning.linear.regions import Regions
from overlapc.runtime.linear.op import OP, run
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.ways import swapped
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

CALLS = 50
"""Of a round, for a clock's resolution."""
MM = Program(
    (ROWS, WHOLE), (Step("aten.mm.default", (Ref("operand", 0), Ref("operand", 1))),), None,
    (Ref("value", 0),),
)  # fmt: skip
PAIRS = {
    "function by the library, over torch.mm": ("function by the library", "torch.mm"),
    "function by flat, over the same calls": ("function by flat", "flat"),
    "op by the library, over torch.mm": ("op by the library", "torch.mm"),
    "op by the library, over aten.mm": ("op by the library", "aten.mm"),
    "op by flat, over the same calls": ("op by flat", "flat"),
    "torch.mm again": ("torch.mm again", "torch.mm"),
}
"""What is subtracted from what; the last is the noise."""


def candidates() -> dict[str, Callable[[], object]]:
    """``CALLS`` calls each, warm."""
    x, w = torch.randn(4, 16), torch.randn(16, 16)
    library = LayerSpec(MM, Regions(), "dispatch").text()
    flat = LayerSpec(MM, Regions(1, 1, 65), "dispatch").text()
    mm = torch.ops.aten.mm.default
    calls: dict[str, Callable[[], object]] = {
        "torch.mm": lambda: torch.mm(x, w),
        "torch.mm again": lambda: torch.mm(x, w),
        "aten.mm": lambda: mm(x, w),
        "function by the library": lambda: run([x, w], library),
        "function by flat": lambda: run([x, w], flat),
        "op by the library": lambda: OP([x, w], library),
        "flat": lambda: swapped(None, x, w),
        "op by flat": lambda: OP([x, w], flat),
    }
    for call in calls.values():
        call()

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        def many() -> None:
            for _ in range(CALLS):
                call()

        return many

    return {name: repeated(call) for name, call in calls.items()}


def beyond(samples: Samples, name: str) -> tuple[float, float, float]:
    """Microseconds a call beyond another's, paired by round: median and quartiles."""
    ours, other = PAIRS[name]
    pairs = zip(samples.seconds[ours], samples.seconds[other], strict=True)
    found = [1e6 * (one - two) / CALLS for one, two in pairs]
    low, middle, high = statistics.quantiles(found, n=4)
    return middle, low, high


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.linear.dispatch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    given = parser.parse_args()
    samples = measure(candidates(), Alone(), rounds=given.rounds, seed=0)
    print("| microseconds a call beyond | median | quartiles |\n|---|---|---|")
    for name in PAIRS:
        middle, low, high = beyond(samples, name)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
