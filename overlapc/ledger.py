"""What this process compiled: the sites of every graph, kept beside the artifacts on disk.

On a warm cache no pass runs, so the sites are found again under the key of the Dynamo graph.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from overlapc.errors import ReportError
from overlapc.options import Options
from overlapc.reporting.records import BEFORE_AUTOGRAD, Site
from overlapc.reporting.report import Report
from overlapc.runtime.artifacts import beside_artifacts, carry, write_beside
from overlapc.runtime.attention.op import redone_of
from overlapc.runtime.linear.tables import choices
from overlapc.runtime.ops import by_library_of, calls_of, choices_text, why_in_steps_of
from overlapc.runtime.ranks import groups
from overlapc.targets import TargetChoice

log = logging.getLogger(__name__)

SENT = ".sent"
"""Suffix of what is kept beside a report."""


class Entry:
    """The sites of one Dynamo graph: of its forward, backward or inference graphs."""

    def __init__(self, key: str, options: Options, targets: TargetChoice) -> None:
        self.key = key
        self.options = options
        self.targets = targets
        self.compiled: dict[str, tuple[Site, ...]] = {}
        """The sites of those graphs whose passes ran here."""
        self.recalled: dict[str, tuple[Site, ...]] = {}
        """The sites of graphs whose passes did not run here, from disk."""
        self.sent: dict[str, Mapping[str, Sequence[str]]] = {}
        """By graph and group, how the graph sends each of its collectives."""

    @property
    def graphs(self) -> dict[str, tuple[Site, ...]]:
        """The sites of every graph, in the order in which the graphs were compiled.

        Another rank may have written its sites before the passes of a stage ran here: then ours
        count, also under another name, for constants in a graph may differ from rank to rank.
        """
        mine = {_stage(site) for sites in self.compiled.values() for site in sites}
        others = {
            graph: sites
            for graph, sites in self.recalled.items()
            if not any(_stage(site) in mine for site in sites)
        }
        return {**others, **self.compiled}

    @property
    def sites(self) -> list[Site]:
        """Every site of every graph."""
        return [site for sites in self.graphs.values() for site in sites]

    def add(self, graph_id: str, sites: Sequence[Site], sent: Mapping[str, Sequence[str]]) -> None:
        """Enter the sites of one graph, and keep them on disk for a warm cache.

        ``sent`` tells by group how the graph sends each of its collectives, in their order.
        """
        if not sites:
            return
        self.sent[graph_id] = sent
        self.recall()
        self.compiled[graph_id] = tuple(sites)
        for path, text in self._texts().items():
            write_beside(path, text)

    def agree(self) -> None:
        """Compare choices with the other members of every group that a site communicates on, and
        how its collectives are sent.

        Groups of backward graphs are left to their ops: a rank with a cold cache does not know
        them yet.
        """
        options = choices(self.options.digest(), self.options.linear, self.options.softmax)
        for name in sorted({s.group for s in self.sites if s.group and s.graph != "backward"}):
            group = groups.resolve(name)
            sends = self._sent_on(name)
            for target in self.targets.of_group(name):
                text = choices_text(options, target.fingerprint)
                groups.agree_once(group, text, self.options.agreement_seconds, sends)

    def _sent_on(self, group: str) -> list[str] | None:
        """How collectives are sent on a group, none of them backward; None where that is lost."""
        graphs = [graph for graph, (first, *_) in self.graphs.items() if first.graph != "backward"]
        if any(graph not in self.sent for graph in graphs):
            return None
        return [how for graph in graphs for how in self.sent[graph].get(group, ())]

    def recall(self) -> None:
        """Take from disk the sites of those kinds of graph whose passes did not run here.

        Who compiled an artifact has written its sites before, so this is called after compiling.
        What this rank wrote comes first.
        """
        known = len(self.sites)
        others = sorted(self._path(0).parent.glob("*.json"))
        for path in (self._path(_rank()), *others):
            mine = {_stage(site) for site in self.sites}
            for site in _read(path):
                if _stage(site) not in mine:
                    graph_id = site.id.rpartition(".")[0]
                    self.recalled[graph_id] = (*self.recalled.get(graph_id, ()), site)
            self.sent = {**_read_sent(path.with_suffix(SENT)), **self.sent}
        if len(self.sites) > known:
            for path, text in self._texts().items():
                carry(path, text)

    def _texts(self) -> dict[Path, str]:
        """What is kept of this entry, by the file that it is kept in."""
        path = self._path(_rank())
        sent = json.dumps(self.sent)
        return {path: Report(self.sites).to_json(), path.with_suffix(SENT): sent}

    def _path(self, rank: int) -> Path:
        return beside_artifacts() / "reports" / self.key / f"{rank}.json"


def _stage(site: Site) -> tuple[str, bool]:
    """Which passes reported a site: those of one stage run together, or not at all."""
    return site.graph, site.id.startswith(BEFORE_AUTOGRAD)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _read(path: Path) -> list[Site]:
    try:
        return Report.from_json(path.read_text(), where=str(path)).sites
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, ReportError) as error:
        log.warning("a stored report is dropped: %s", error)
        return []


def _read_sent(path: Path) -> dict[str, Mapping[str, Sequence[str]]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # nothing is compared then
    is_whole = isinstance(found, dict) and all(map(_is_sent, found.values()))
    return found if is_whole else {}


def _is_sent(by_group: object) -> bool:
    if not isinstance(by_group, dict):
        return False
    return all(
        isinstance(sent, list) and all(isinstance(how, str) for how in sent)
        for sent in by_group.values()
    )


_entries: dict[str, Entry] = {}


def open_entry(key: str, options: Options, targets: TargetChoice) -> Entry:
    """Return the entry of that key; the same one when a graph is compiled again."""
    if key not in _entries:
        _entries[key] = Entry(key, options, targets)
    return _entries[key]


def enter(entry: Entry) -> Entry:
    """Take in an entry that another process made; return the one of that key that was here first,
    or it."""
    return _entries.setdefault(entry.key, entry)


def forget(entry: Entry) -> None:
    """Drop the entry of a graph that was not compiled: no report has its sites."""
    _entries.pop(entry.key, None)


def key_of(graph_module: fx.GraphModule, example_inputs: Sequence[Any], uuid: str) -> str:
    """Hash a Dynamo graph's code, what is known of its inputs, and the passes' uuid.

    Names of graphs are not used: they depend on the order of compilation.
    """
    digest = hashlib.sha256(uuid.encode())
    modes = [(name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name))
             for name in ("cpu", "cuda")]  # fmt: skip
    digest.update(repr((torch.is_grad_enabled(), modes)).encode())
    for module in graph_module.modules():
        if isinstance(module, fx.GraphModule):
            digest.update(module.code.encode())
    for value in example_inputs:
        digest.update(_input_text(value).encode())
    return digest.hexdigest()[:24]


def _input_text(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__}|"
    sizes = [str(size) for size in (*value.shape, *value.stride())]
    return f"{value.dtype},{value.device.type},{value.requires_grad},{sizes}|"


def report() -> Report:
    """Return the sites of everything this process compiled, with their calls per schedule."""
    for entry in _entries.values():
        entry.recall()  # a backward graph is compiled, or found in the cache, after its forward
    sites = [site for entry in _entries.values() for site in entry.sites]
    return Report(list({site.id: _as_called(site) for site in sites}.values()))


def _as_called(site: Site) -> Site:
    """The site with its calls, why the library computed those that were to be signaled, why its
    pointwise steps ran one by one, and how many rows kernels of attention had to do again."""
    said = [
        f" The library computed {count} calls: {why}"
        for why, count in by_library_of(site.id).items()
    ]
    if why := why_in_steps_of(site.id):
        said.append(f" Its pointwise steps ran one by one: {why}")
    reason = "".join((site.reason, *said))
    return replace(
        site, calls=dict(calls_of(site.id)), reason=reason, redone_rows=redone_of(site.id)
    )
