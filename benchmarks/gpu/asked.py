"""What is asked of an H200, as data: one place, for every page and for the list of them all.

Tables and columns are named as pages name them: a verdict needs the page's JSON alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST, GEOMEAN, RIGHT = "least", "geomean", "all right"
"""How rows are judged: by the worst of them, by all together, or by none being wrong."""
COMPARED = "Beside FlashOverlap's published figures"

Row = Mapping[str, Any]


def _any(row: Row) -> bool:
    return True


@dataclass(frozen=True)
class Asked:
    """One figure, at least ``goal``; "reported" where it is None."""

    part: str
    what: str
    tables: tuple[str, ...]
    column: str = ""
    """A ratio, above 1 where ours is quicker, or a share; empty of rows that are to be right."""
    by: str = LEAST
    goal: float | None = 1.0
    only: Callable[[Row], bool] = _any
    """Rows that count."""

    def __str__(self) -> str:
        if self.by == RIGHT:
            return RIGHT
        return "reported" if self.goal is None else f"{self.by} ≥ {self.goal:.3g}"


_GEMM, _OVERLAP = ("The GEMM alone",), ("Overlap over an EMULATED link",)
_DECODE, _PREFILL, _LINEAR = ("Decode",), ("Prefill",), ("Speed",)
_ALL_SMS, _LEFT = "of torch.mm", "of torch.mm, 16 SMs left to both"
_SIGNALING = "with 8 signals, of the same without"
_BY_DISPATCH = "by dispatch, of library"


def _is_long(row: Row) -> bool:
    return row.get("tokens", 0) >= 32 * 1024


def _is_large(row: Row) -> bool:
    return row.get("weight MiB", 0) >= 32


def _is_gated(row: Row) -> bool:
    return "gate, up" in row.get("layer", "")


def _is_both(row: Row) -> bool:
    return row["row"].partition(", ")[2] == "overlapc, both"


ASKED = (
    Asked("gemm", "kernels, staged paths and captures", (
        "Kernels against float64", "Staged paths against float64, over an EMULATED link",
    ), by=RIGHT),
    Asked("gemm", "NCCL in a world of one, and two ranks on one GPU", ("NCCL on one GPU",),
          by=RIGHT),
    Asked("gemm", "GEMM over `torch.mm`, bfloat16, all SMs", _GEMM, _ALL_SMS, GEOMEAN, 0.97),
    Asked("gemm", "GEMM over `torch.mm`, bfloat16, all SMs", _GEMM, _ALL_SMS, LEAST, 0.93),
    Asked("gemm", "GEMM over `torch.mm`, 16 SMs left to both", _GEMM, _LEFT, GEOMEAN, 0.97),
    Asked("gemm", "GEMM over `torch.mm`, 16 SMs left to both", _GEMM, _LEFT, LEAST, 0.93),
    Asked("gemm", "GEMM with signals over the same without (they add 0.5 % at most)", _GEMM,
          _SIGNALING, LEAST, 0.995),
    Asked("gemm", "the same without the kernel that zeroes counters", _GEMM,
          f"{_SIGNALING}, counters zeroed before", LEAST, 0.995),
    Asked("gemm", "signaled over an EMULATED link: share of the grouped bound", _OVERLAP,
          "share of the bound", LEAST, 0.95),
    Asked("gemm", "what is chosen over an EMULATED link, over serial", _OVERLAP,
          "chosen over serial", LEAST, 0.99),
    Asked("gemm", "signaled over an EMULATED link, over FlashOverlap's mean on like ratios",
          (COMPARED,), "over their mean", GEOMEAN, 1.0),
    Asked("attention", "kernels", ("Values",), by=RIGHT),
    Asked("attention", "decode: share of the measured read bandwidth, from 32k tokens in total",
          _DECODE, "share of the bound", LEAST, 0.9, _is_long),
    *(
        Asked("attention", f"decode over {peer}", _DECODE, column, LEAST, 1.0)
        for peer, column in (("torch's best SDPA", "of best sdpa"),
                             ("FlexAttention", "of flex"), ("FlashInfer", "of flashinfer"))
    ),
    Asked("attention", "decode over torch's SDPA with GQA", _DECODE, "of sdpa", GEOMEAN, 1.3),
    Asked("attention", "a static cache of 8k that holds 2k, over Inductor's SDPA",
          ("A static cache that is not full",), "of inductor", LEAST, 3.0),
    Asked("attention", "the same, where our kernel is given the mask and no length",
          ("A static cache that is not full",), "of inductor, given the mask", LEAST, 3.0),
    Asked("attention", "prefill over the best SDPA backend, by our kernel", _PREFILL,
          "of best sdpa", LEAST, 0.9),
    *(
        Asked("attention", f"unified over online softmax in one kernel, {name}", table,
              "unified over online", GEOMEAN, None)
        for name, table in (("decode", _DECODE), ("prefill", _PREFILL))
    ),
    Asked("linear", "kernels", ("Values",), by=RIGHT),
    Asked("linear", "layers of 1 to 64 rows over cuBLAS, by dispatch", _LINEAR, _BY_DISPATCH,
          GEOMEAN, 1.15),
    Asked("linear", "layers of 1 to 64 rows over cuBLAS, by dispatch", _LINEAR, _BY_DISPATCH),
    Asked("linear", "weights of 32 MiB and more: share of the measured read bandwidth", _LINEAR,
          "by dispatch, share of reading", LEAST, 0.85, _is_large),
    Asked("linear", "gate and up in one launch with their epilogue, over cuBLAS", _LINEAR,
          _BY_DISPATCH, GEOMEAN, 1.25, _is_gated),
    Asked("model", 'decode of Llama-3 8B\'s shapes over `inductor`, `mode="reduce-overhead"`',
          ("Tokens a second",), "of inductor", LEAST, 1.3, _is_both),
)  # fmt: skip
"""In the order of the list. Where nothing is said of how rows are judged, each has to do."""
