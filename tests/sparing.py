"""What torch does anew at every compilation or group, and what the tests can do without."""

from __future__ import annotations

from typing import Any


def spare() -> None:
    """Leave out, in this process, some 0.1 s of each compilation on a new group.

    Dynamo flushes the processor's cache to time each set of guards once, for its logs, and looks
    for garbage; and each new group throws away its table of torch's functions, in case
    torch.distributed was being imported when the table was made.
    """
    import torch._dynamo.config as config
    import torch._dynamo.guards as guards
    import torch._dynamo.trace_rules as trace_rules

    def latency(*_: Any) -> float:
        return 0.0

    config.run_gc_after_compile = False
    guards.profile_guard_manager = latency
    trace_rules.clear_lru_cache = lambda: None


def as_it_is(graph: Any, inputs: Any) -> Any:
    """In place of `overlapc.runtime.programs.compiling.by_inductor`: the graph runs call by call.

    To build a kernel takes the C++ compiler seconds.
    """
    del inputs
    return lambda given: graph(*given)
