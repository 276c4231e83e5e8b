"""In which order a decode kernel reads keys and writes rows, in the interpreter.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime.interpreter import interpreter_builder

from tests.codegen.decode_cases import Case, prepare


def written_first(
    spec: str, cache: str, case: dict[str, Any], mutate: Sequence[tuple[str, str]] = ()
) -> None:
    """Raise AssertionError unless rows are written before keys are read for them again: a CTA has
    registers for one result.

    Of a case whose rows are computed again; ``mutate`` as of ``decode_cases.run``.
    """
    made = prepare(spec, cache, Case(**case), mutate)
    keys, out = (side.untyped_storage() for side in made.sides[1::2])
    builder: Any = interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store
    events: list[str] = []

    def note(what: str, pointers: Any, mask: Any, storage: torch.UntypedStorage) -> None:
        places = pointers.data[mask.data.astype(bool)]
        first = storage.data_ptr()
        if ((places >= first) & (places < first + storage.nbytes())).any():
            events.append(what)

    def noting_load(pointers: Any, mask: Any, *others: Any) -> Any:
        note("keys", pointers, mask, keys)
        return load(pointers, mask, *others)

    def noting_store(pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        note("rows", pointers, mask, out)
        return store(pointers, value, mask, *others)

    with patch.multiple(builder, create_masked_load=noting_load, create_masked_store=noting_store):
        made.launch(0)
    made.check()
    last_read = len(events) - events[::-1].index("keys")
    assert "rows" in events[:last_read], "rows are written after some are computed again"
