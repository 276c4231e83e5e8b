"""Under option ``verify``, the ranks compare the sizes of every collective that stays torch's own.

An op of ours compares by itself. Any other collective is given to send what an op gives that has
compared sizes before, and the next pass keeps these in the order of the program. Contract. Same
collectives, same values; without the option the graph is as it was.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

from torch import fx

from overlapc.errors import GroupError, TargetError
from overlapc.graphs.calls import Call, add_verifier, read_call
from overlapc.graphs.collectives import Refusal, collective_starts, is_ours
from overlapc.graphs.origins import where
from overlapc.graphs.values import tensor_facts
from overlapc.passes.base import Compilation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifySizes:
    """Puts an op that compares sizes before every collective that is not ours."""

    name: str = "verify_sizes"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Warn of what cannot be compared."""
        options = compilation.options
        if compilation.is_disabled(self.name) or not options.verify:
            return
        for start in collective_starts(graph):
            if is_ours(start):
                continue
            call = read_call(start)
            if isinstance(call, Refusal):
                what = f"Sizes of {start.target} at {where(start)} are not compared: {call.reason}"
                warnings.warn(what, stacklevel=1)
                continue
            target = _target_of(call, compilation)
            add_verifier(graph, call, options.agreement_seconds, compilation.choices, target)


def _target_of(call: Call, compilation: Compilation) -> str:
    """The fingerprint of the target that an op of ours would be planned for here."""
    facts = tensor_facts(call.sent[0])
    try:
        return compilation.target_for(facts.device if facts else "cpu", call.group).fingerprint
    except (GroupError, TargetError) as error:
        log.debug("nothing is planned for group %s: %s", call.group, error.what)
        return ""
