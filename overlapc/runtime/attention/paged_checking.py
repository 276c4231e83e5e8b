"""Whether tensors are a call of attention over pages, in the words of an error.

Asked before either way of computing it is chosen, so that both refuse the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from overlapc.codegen.attention.cache import NARROW, PAGES
from overlapc.codegen.attention.checking import misfit_of, misfit_of_devices
from overlapc.codegen.attention.spec import DTYPES, MOST_DIM
from overlapc.errors import KernelError
from overlapc.runtime.attention.kernels import may_share

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
    _check_limits(query, keys, values)


def _check_limits(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Raise KernelError where dtypes, columns or pages are none that a decode kernel reads."""
    dtype, own, page = _name(query), _name(keys), keys.shape[2]
    if dtype not in DTYPES:
        raise _error(f"queries are of {dtype}", "query", f"give one of {', '.join(DTYPES)}")
    if own not in (dtype, *NARROW):
        remedy = f"give both in one dtype, or keys and values in {', '.join(NARROW)}"
        raise _error(f"keys are of {own} beside queries of {dtype}", "keys", remedy)
    if page not in PAGES:
        remedy = f"lay keys and values out in pages of {', '.join(map(str, PAGES))} keys"
        raise _error(f"a page holds {page} keys", "keys, dimension 2", remedy)
    dim, value_dim = query.shape[3], values.shape[3]
    for name, columns in (("query", dim), ("values", value_dim)):
        if not 0 < columns <= MOST_DIM:
            remedy = f"give heads of 1 to {MOST_DIM} columns"
            raise _error(f"{name} has {columns} columns", f"{name}, dimension 3", remedy)
    if keys.shape[3] < dim and not may_share(dim, value_dim):
        what = f"keys of {dim} columns begin with values of {value_dim}"
        remedy = "give whole keys, or values of the largest power of two of columns in them"
        raise _error(what, "keys, dimension 3", remedy)


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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


def _error(what: str, where: str, remedy: str = REMEDY) -> KernelError:
    return KernelError(
        f"This is no call of attention over pages: {what}.",
        where=f"paged_attention, {where}",
        remedy=remedy,
    )
