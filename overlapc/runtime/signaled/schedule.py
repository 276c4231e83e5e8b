"""The ``signaled`` schedule of a call: by a generated GEMM that announces its groups as it runs.

Where none fits, the library computes the same groups, and they are sent on the same communicator: a
rank that falls back alone meets its peers.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.distributed as dist

from overlapc.codegen import Kernel, build
from overlapc.errors import KernelError
from overlapc.planning.kernel_tiles import TMA_ALIGNMENT
from overlapc.planning.target import Target
from overlapc.planning.tiles import SWEEP, Tile
from overlapc.runtime.chunked.packed import PackedProducer
from overlapc.runtime.chunked.producers import Producer
from overlapc.runtime.cutting.layout import Dealing
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.signaled.communicators import Communicator, communicator
from overlapc.runtime.signaled.kernels import kernel_spec_of
from overlapc.runtime.signaled.requirements import why_no_kernel, why_no_streams
from overlapc.runtime.signaled.signals import polls_in
from overlapc.runtime.signaled.staged import StagedGemm
from overlapc.runtime.spec import ChainSpec

log = logging.getLogger(__name__)


def why_not_signaled(
    spec: ChainSpec,
    target: Target,
    operands: Sequence[torch.Tensor],
    device: torch.device,
    group: dist.ProcessGroup,
) -> str:
    """Why the library computes the groups of a signaled plan of a chain; empty if a kernel does.

    Operands may be fake, and without a device: nothing is said then of what they would be on.
    What only a launch can tell (too little shared memory, say) is found out at the first call.
    """
    try:
        kernel_spec_of(spec, target, operands)
    except KernelError as error:
        return error.what
    if device.type == "meta":
        return ""
    return why_no_streams(device, group) or why_no_kernel(device, target.architecture)


@dataclass(frozen=True)
class Built:
    """A chain's GEMM for operands of one layout."""

    gemm: StagedGemm
    a: int
    """Which operand is A."""
    b: int
    inputs: tuple[int, ...]
    """Which are the epilogue's."""


@dataclass(frozen=True)
class Signaled:
    """A chain of known sizes whose groups all ranks send alike, however each computes them."""

    spec: ChainSpec
    target: Target
    deal: Dealing
    library: Producer | PackedProducer
    """Computes and sends the same groups."""
    tile: Tile | None = None
    """Of the plan."""
    others: tuple[Tile, ...] = ()
    """That other rows may be planned with: compiled with the first, lest calls wait for them."""
    built: dict[Hashable, Built | str] = field(default_factory=dict)
    """By the layout of operands; or why there is none."""

    def __call__(
        self, operands: Sequence[torch.Tensor], group: dist.ProcessGroup
    ) -> tuple[list[torch.Tensor], str]:
        """Return what ``library`` does, ready on the current stream, and why it did if it did.

        Which group sends is the same on all ranks. ``SignalError``, with everything sent, where
        ``verify`` finds that a group was never announced.
        """
        device, sms = operands[0].device, self.target.communication_sms
        beside = communicator(group, sms, device, self.spec.wait_seconds)
        if isinstance(beside, str):
            return self.library(operands, group), _told(beside)
        key = tuple((t.stride(), t.data_ptr() % TMA_ALIGNMENT) for t in operands)
        built = self.built.get(key)
        if built is None:
            built = self.built[key] = self._build(operands, device, group)
        if not isinstance(built, str):
            try:
                return [self._run(built, operands, beside)], ""
            except KernelError as error:
                built = error.what
                is_short = isinstance(error.__cause__, torch.OutOfMemoryError)
                if not is_short and not torch.cuda.is_current_stream_capturing():
                    self.built[key] = built  # it would fail again
        return self.library(operands, beside.group), _told(built)

    def _run(
        self, built: Built, operands: Sequence[torch.Tensor], beside: Communicator
    ) -> torch.Tensor:
        counts = self.spec.verify and not torch.cuda.is_current_stream_capturing()
        return built.gemm(
            operands[built.a],
            operands[built.b],
            beside.group,
            self.target.communication_sms,
            name=beside.name,
            max_polls=polls_in(self.spec.wait_seconds) if counts else 0,
            inputs=[operands[index] for index in built.inputs],
        )

    def _build(
        self, operands: Sequence[torch.Tensor], device: torch.device, group: dist.ProcessGroup
    ) -> Built | str:
        spec = self.spec
        if why := why_not_signaled(spec, self.target, operands, device, group):
            return why
        try:
            kernel, lowered = kernel_spec_of(spec, self.target, operands, self.tile)
            built = Built(self._staged(build(kernel)), lowered.a, lowered.b, lowered.operands)
            self._compile_others(operands, built)
            return built
        except KernelError as error:
            return error.what
        except Exception as error:  # this rank alone shall not stay away from the collectives
            log.exception("a fault of overlapc in %s", spec.site)
            return f"A fault of overlapc, which its log tells, please report it: {error!r}."

    def _compile_others(self, operands: Sequence[torch.Tensor], built: Built) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        inputs = [operands[index] for index in built.inputs]
        mine = {self.tile.configuration} if self.tile else set[Tile]()
        for tile in {tile.configuration for tile in self.others} - mine:
            try:
                kernel, _ = kernel_spec_of(self.spec, self.target, operands, tile)
                with torch.cuda.device(operands[0].device):
                    build(kernel).compile(operands[built.a], operands[built.b], inputs)
            except Exception as error:  # a call that needs it will say so
                log.info("tiles of %s are not compiled ahead: %r", tile, error)

    def _staged(self, kernel: Kernel) -> StagedGemm:
        spec, deal = self.spec, self.deal
        sender = Sender(spec.collective, spec.reduce, in_stream=True)
        if isinstance(self.library, PackedProducer):
            return StagedGemm.packed(kernel, sender, self.library.parts, self.library.order)
        return StagedGemm.of(
            kernel,
            sender,
            self.library.parts,
            result_units=deal.result_units,
            across=deal.ranks if self.library.by_columns else 1,
            first_run=deal.me,
            sweep=self.tile.sweep if self.tile else SWEEP,
        )


def _told(why: str) -> str:
    _log_once(why)
    return why


@lru_cache(maxsize=64)
def _log_once(why: str) -> None:
    log.warning("the library computes the groups of a signaled plan: %s", why)
