"""A call of a chain on a group: how it runs for sizes that it was called with before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.distributed as dist

from overlapc.runtime import checking
from overlapc.runtime.preparing import Chain, Operands, Ready, Sizes, prepare

MOST_READY = 256
"""Sizes of one chain that are kept ready, some 20 kB each; of more, the oldest are made again."""


@dataclass
class Caller:
    """What one (group, specification) needs at every call, worked out at the first."""

    chain: Chain
    """Shared by all sites that do the same."""
    calls: Counter[str]
    """Calls of the site by schedule."""
    by_library: Counter[str]
    """Calls of a signaled plan that the library computed, by the reason."""

    def __call__(
        self,
        group: dist.ProcessGroup,
        operands: Operands,
        outer: int,
        receives: Sizes,
        sends: Sizes,
    ) -> list[torch.Tensor]:
        """Run the chain; ``ProblemError`` for operands that do not fit it."""
        chain = self.chain
        key = (outer, receives, sends, *[(t.shape, t.dtype) for t in operands])
        ready = chain.ready.get(key)
        if ready is None:
            ready = prepare(chain, group, operands, outer, receives, sends)
            if len(chain.ready) >= MOST_READY:
                del chain.ready[next(iter(chain.ready))]
            chain.ready[key] = ready
        elif chain.spec.verify:
            checking.verify(chain.spec, group, ready.deal, ready.text)
        results = self._run(ready, operands, group)
        return results if ready.reread is None else ready.reread(results)

    def _run(
        self, ready: Ready, operands: Operands, group: dist.ProcessGroup
    ) -> list[torch.Tensor]:
        if ready.signaled is None:
            self.calls[ready.schedule] += 1
            return ready.run(operands, group)
        results, why = ready.signaled(operands, group)
        self.calls[ready.schedule if why else "signaled"] += 1
        if why:
            self.by_library[why] += 1
        return results
