"""Whether a generated kernel computes a call of an op, or torch has to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from overlapc.errors import KernelError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FAILED_PASSES = "PassManager::run failed"
"""What Triton's compiler says, in a bare RuntimeError, of a kernel that its passes cannot lower."""


def runs_kernels(device: str) -> bool:
    """Return whether kernels can run on devices of this type: on a GPU, or interpreted."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return device == "cuda" or (device == "cpu" and bool(knobs.runtime.interpret))


@dataclass
class KernelAttempts:
    """The kernels of one op, each of which is given up once Triton could not build it."""

    what: str
    """Which work is theirs, for messages."""
    raises_misfits: bool = False
    """Whether operands that no kernel takes are an error of the caller's, not work of torch's."""
    given_up: dict[Hashable, str] = field(default_factory=dict)
    """Why, by kernel."""

    def run(
        self, kernel: Hashable, operand: torch.Tensor, launch: Callable[[], Result]
    ) -> Result | None:
        """Return what ``launch`` does on the operand's device; None where torch has to compute.

        ``kernel`` tells apart what is built, and so what is given up.
        """
        if kernel in self.given_up or not runs_kernels(operand.device.type):
            return None
        from triton.errors import TritonError

        try:
            with torch.cuda.device_of(operand):
                return launch()
        except KernelError as error:  # these operands do not fit; others may
            if self.raises_misfits:
                raise
            log.warning("torch computes a call of %s: %s", self.what, error)
        except (TritonError, RuntimeError) as error:
            if not is_of_building(error):
                raise
            # Nothing that was launched is read, and nothing will be.
            self.given_up[kernel] = str(error)
            log.warning("torch computes %s that no kernel can: %s", self.what, error)
        return None


def is_of_building(error: Exception) -> bool:
    """Return whether Triton says that it cannot build a kernel, and not that one has failed."""
    from triton.errors import TritonError

    return isinstance(error, TritonError) or str(error).startswith(FAILED_PASSES)
