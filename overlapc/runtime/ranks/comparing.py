"""What the ranks of a group say to each other of one call, and the error where that does not fit.

A call is a collective and who sends it, such as "torch's all_reduce sum"; sizes follow behind
" of ". Ranks of which one leaves a collective to torch and another overlaps it meet here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import NoReturn

import torch
import torch.distributed as dist

from overlapc.runtime.ranks import groups
from overlapc.runtime.spec import ChainSpec

SENDS, RECEIVES = ", sends ", ", receives "

BY = "\nby "
"""Behind it stands what ranks may differ in, and no error tells."""

REFUSED = "refused: "
"""What a rank says instead, whose own operands do not fit: who waits for it shall fail as well."""

EQUAL_SIZES = (
    "call this collective with equal sizes and dtypes on every rank: pad what is shorter, and trim "
    "the result"
)
SEEN_TO = "see to the error of the rank that refused, and call again on every rank"
MATCHING_ROWS = (
    "let each rank receive from every other as many rows as that one sends to it, so exchange the "
    "numbers of rows before the rows"
)


def call_of(spec: ChainSpec) -> str:
    """Return what the others are told of an op of ours."""
    is_reduced = spec.collective in ("all_reduce", "reduce_scatter")
    return f"overlapc's {spec.kind}{f' {spec.reduce}' if is_reduced else ''}"


def place_of(spec: ChainSpec) -> str:
    """Return where an error of an op of ours comes from."""
    return f"a call of overlapc::{spec.kind}, site {spec.site or '?'}"


def sizes_text(shape: Sequence[object], dtype: torch.dtype) -> str:
    """Return a shape and dtype as every rank spells them."""
    return f"{'x'.join(map(str, shape)) or 'scalar'} {str(dtype).removeprefix('torch.')}"


@contextmanager
def refusals_told(group: dist.ProcessGroup, seconds: float, *, is_asked: bool) -> Iterator[None]:
    """Tell the others of an error in here, where they wait for what this rank says of a call."""
    try:
        yield
    except Exception as error:
        if is_asked:
            with suppress(RuntimeError):  # what is wrong here says more than what they answer
                groups.exchange(group, f"{REFUSED}{error}", seconds)
        raise


def verify(
    group: dist.ProcessGroup,
    call: str,
    sizes: str,
    receives: Sequence[int],
    sends: Sequence[int],
    seconds: float,
    at: str,
) -> None:
    """Raise ``DisagreementError`` on every rank unless this call fits on all of them.

    ``sizes`` are those that have to be equal. ``receives`` and ``sends`` are the rows from and to
    each rank where these may differ, else empty.
    """
    mine = f"{call} of {sizes}"
    rows = f"{SENDS}{_spelled(sends)}{RECEIVES}{_spelled(receives)}" if sends else ""
    values = groups.exchange(group, mine + rows, seconds)
    said = [value.partition(SENDS) for value in values]
    if any(text != mine or bool(more) != bool(rows) for text, more, _ in said):
        raise_unlike(group, values, at)
    if not rows or len(values) == 1:
        return
    sent, _, received = zip(*(more.partition(RECEIVES) for _, _, more in said), strict=True)
    columns = zip_longest(*(part.split("/") for part in sent))
    if [list(column) for column in columns] != [part.split("/") for part in received]:
        what = "ranks expect other rows than are sent"
        groups.raise_disagreement(group, values, what, MATCHING_ROWS, at)


def _spelled(rows: Sequence[int]) -> str:
    return "/".join(map(str, rows))


def raise_unlike(group: dist.ProcessGroup, values: Sequence[str], at: str = "") -> NoReturn:
    """Raise the error for ranks that said unlike things of one call."""
    values = [value.partition(BY)[0] for value in values]
    if refused := [rank for rank, value in enumerate(values) if value.startswith(REFUSED)]:
        what = f"ranks {refused} refused a call"
        groups.raise_disagreement(group, values, what, SEEN_TO, at)
    if len({value.partition(" of ")[0] for value in values}) > 1:
        what = "they send a collective differently"
        groups.raise_disagreement(group, values, what, groups.DECIDED, at)
    groups.raise_disagreement(group, values, "the sizes of a call differ", EQUAL_SIZES, at)
