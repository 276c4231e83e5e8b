"""A compiled graph as Dynamo holds it: it first compares plans with other ranks; can be saved."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch._dynamo.aot_compile_types import (
    BundledAOTAutogradSerializableCallable as Bundled,
)
from torch._dynamo.aot_compile_types import SerializableCallable

from overlapc import direct_calls, ledger
from overlapc.errors import ArtifactError
from overlapc.reporting.records import Site
from overlapc.runtime.plans import keep
from overlapc.sources import fingerprint_of_sources

log = logging.getLogger(__name__)


class AgreeingCallable(SerializableCallable):
    """A compiled graph that, at its first call, compares plans with the other ranks.

    What ``torch.compile(...).aot_compile`` makes of it can be saved; a process that loads it need
    import nothing of overlapc.
    """

    def __init__(self, compiled: Callable[..., Any], entry: ledger.Entry) -> None:
        # Dynamo keeps itself out of what a backend gives it: to do so once a call is enough.
        self.compiled = getattr(compiled, "_torchdynamo_orig_callable", compiled)
        self.entry = entry
        self.first = True

    def __call__(self, *args: Any) -> Any:
        """Call the compiled graph."""
        if self.first:
            self.entry.agree()
            self.first = False
        return self.compiled(*args)

    @classmethod
    def serialize_compile_artifacts(cls, fn: AgreeingCallable) -> bytes:
        """Return the graph as Inductor compiled it, its sites, and what its ops plan for.

        Raises ``ArtifactError`` where Inductor keeps no artifact of it.
        """
        if getattr(fn.compiled, "serialize", None) is None:
            raise ArtifactError(
                "Inductor kept no artifact of this graph that could be saved.",
                where="aot_compile of a function compiled by backend 'overlapc'",
                remedy="leave out options dump and fuel, which keep graphs out of Inductor's cache",
            )
        graph = Bundled.serialize_compile_artifacts(Bundled(fn.compiled))
        own = pickle.dumps((fn.entry, fn.entry.targets.all(), graph))
        return pickle.dumps((fingerprint_of_sources(), own))

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> AgreeingCallable:
        """Return what was saved; its sites are in the report.

        Raises ``ArtifactError`` where other sources of overlapc saved it.
        """
        fingerprint, own = pickle.loads(data)
        if fingerprint != fingerprint_of_sources():
            raise ArtifactError(
                "A saved graph is of another version of overlapc, whose ops may differ.",
                where=f"an artifact of aot_compile by sources {fingerprint[:12]}",
                remedy="compile and save it again with the version that loads it",
            )
        direct_calls.install()
        entry, targets, graph = pickle.loads(own)
        for target in targets:
            keep(target)
        return cls(Bundled.deserialize_compile_artifacts(graph), ledger.enter(entry))


def agreeing(compiled: Callable[..., Any], entry: ledger.Entry) -> Callable[..., Any]:
    """Return ``compiled`` with the first-use comparison in front, where it communicates."""
    entry.recall()
    if not entry.sites:
        log.info("a graph without a site: compiled as Inductor compiles it")
        return compiled
    _warn_if_nothing_was_rewritten(entry.sites)
    return AgreeingCallable(compiled, entry)


_warned = False


def _warn_if_nothing_was_rewritten(sites: Sequence[Site]) -> None:
    global _warned
    sites = [site for site in sites if site.kind not in ("attention", "linear")]
    if _warned or not sites or any(site.decision == "rewritten" for site in sites):
        return
    _warned = True
    first = sites[0]
    warnings.warn(
        f"overlapc rewrote none of the {len(sites)} collectives of this graph. At {first.where}: "
        f"{first.reason} [{first.code}]. overlapc.explain(model)(*inputs) tells of each.",
        stacklevel=2,
    )
