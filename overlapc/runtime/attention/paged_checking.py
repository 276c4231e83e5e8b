"""Whether tensors are a call of attention over pages, in the words of an error.

Asked before either way of computing it is chosen, so that both refuse the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from overlapc.codegen.attention.checking import misfit_of, misfit_of_devices
from overlapc.errors import KernelError

REMEDY = "give operands as paged_attention says"


def check_operands(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    scales: Mapping[str, torch.Tensor | None],
) -> None:
    """Raise KernelError unless shapes, dtypes and devices are those of a call; reads no values."""
    given = {"query": query, "keys": keys, "values": values, "table": table, "lengths": lengths}
    every = {**given, **{name: one for name, one in scales.items() if one is not None}}
    why = (
        _misfit_of_kinds(every)
        or _misfit_of_sides(query, keys, values)
        or _misfit_of_table(query, table, lengths)
        or _misfit_of_scales(keys.shape[1], scales)
        or misfit_of_devices(query, every)
    )
    if why:
        raise _error(why, f"query {list(getattr(query, 'shape', ()))}")


def pages_seen(
    table: torch.Tensor, lengths: torch.Tensor, page: int, reach: int | None
) -> torch.Tensor:
    """Which pages hold a key that some row may see, as the table: of each sequence's last ``reach``
    keys, or of all where it is None."""
    first = page * torch.arange(table.shape[1], device=table.device)
    seen = first < lengths[:, None]
    return seen if reach is None else seen & (first + page > lengths[:, None] - reach)


def check_pages(
    table: torch.Tensor, lengths: torch.Tensor, page: int, pages: int, reach: int | None
) -> None:
    """Raise KernelError where a sequence has a page that is none, or a length that cannot be.

    Waits for the device: for processors.
    """
    if lengths.numel() and int(lengths.min()) < 0:
        raise _error(f"a sequence has {int(lengths.min())} keys", "lengths")
    most = page * table.shape[1]
    if lengths.numel() and int(lengths.max()) > most:
        raise _error(f"a sequence has {int(lengths.max())} keys, and its pages {most}", "lengths")
    named = table[pages_seen(table, lengths, page, reach)]
    wrong = named[(named < 0) | (named >= pages)]
    if wrong.numel():
        raise _error(f"a sequence lies in page {int(wrong[0])} of {pages}", "table")


def _misfit_of_kinds(given: Mapping[str, torch.Tensor]) -> str:
    for name, one in given.items():
        if not isinstance(one, torch.Tensor):
            return f"{name} is a {type(one).__name__}, no tensor"
    for name in ("query", "keys", "values"):
        if given[name].dim() != 4:
            return f"{name} has {given[name].dim()} dimensions, not four"
    return ""


def _misfit_of_sides(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> str:
    heads, shared, dim, own = query.shape[1], keys.shape[1], query.shape[3], keys.shape[3]
    if not shared or not heads or heads % shared:
        return f"{heads} heads of queries are no multiple of {shared}"
    if values.shape[:3] != keys.shape[:3]:
        return f"values are {list(values.shape)} beside keys {list(keys.shape)}"
    if values.dtype != keys.dtype:
        return f"values are of {values.dtype} beside keys of {keys.dtype}"
    if own not in (dim, dim - values.shape[3]):
        return f"keys have {own} columns, where those of queries are {dim}"
    return ""


def _misfit_of_table(query: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor) -> str:
    batch = query.shape[0]
    if table.dim() != 2 or not table.shape[1]:
        return f"table is {list(table.shape)}, not [{batch}, most pages]"
    return misfit_of("table", table, (batch, table.shape[1]), ("int32",), True) or misfit_of(
        "lengths", lengths, (batch,), ("int32",), True
    )


def _misfit_of_scales(heads: int, scales: Mapping[str, torch.Tensor | None]) -> str:
    given = [one for one in scales.values() if one is not None]
    if not given:
        return ""
    size = 1 if given[0].numel() == 1 else heads
    found = (misfit_of(name, one, (size,), ("float32",), True) for name, one in scales.items())
    return next(filter(None, found), "")


def _error(what: str, where: str) -> KernelError:
    return KernelError(
        f"This is no call of attention over pages: {what}.",
        where=f"paged_attention, {where}",
        remedy=REMEDY,
    )
