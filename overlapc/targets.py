"""Which machine a compilation plans for: the one the user names, else the one it runs on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from overlapc.calibration import find_target
from overlapc.errors import TargetError
from overlapc.planning.target import Target
from overlapc.runtime.groups import backend_name, resolve, sizes_of_groups


@dataclass(frozen=True)
class TargetChoice:
    """A user's ``target`` option, made concrete for each group."""

    choice: str | Target

    def target_for(self, device: str, group: str) -> Target:
        """Return the target for tensors of type ``device`` and the group of that name.

        Raises ``TargetError`` for a choice that cannot be read, and for "auto" on a device that
        was neither calibrated nor has a shipped target.
        """
        if isinstance(self.choice, Target):
            return self.choice
        if self.choice != "auto":
            return Target.load(self.choice)
        living = resolve(group)
        return find_target(_planned_device(device), backend_name(living), living.size())

    def all(self) -> list[Target]:
        """Return every target that ``target_for`` may give now, in the order of fingerprints."""
        if self.choice != "auto":
            return [self.target_for("cpu", "")]
        found = set()
        for device in ("cpu", _planned_device("meta")):
            for group in sizes_of_groups():
                with suppress(TargetError):  # the pass refuses the sites of such a device
                    found.add(self.target_for(device, group))
        return sorted(found, key=lambda target: target.fingerprint)


def _planned_device(device: str) -> str:
    """Tensors on ``meta`` are planned for the accelerator of this machine, or its processor."""
    if device != "meta":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
