"""Which machine a compilation plans for: the one the user names, else the one it runs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from overlapc.calibration import find_target
from overlapc.planning.target import Target
from overlapc.runtime.groups import backend_name, resolve, sizes_of_groups


@dataclass(frozen=True)
class TargetChoice:
    """A user's ``target`` option, made concrete for each group."""

    choice: str | Target

    def target_for(self, device: str, group: str) -> Target:
        """Return the target for tensors of type ``device`` and the group of that name."""
        if isinstance(self.choice, Target):
            return self.choice
        if self.choice != "auto":
            return Target.load(self.choice)
        living = resolve(group)
        return find_target(_planned_device(device), backend_name(living), living.size())

    def fingerprints(self) -> list[str]:
        """Return the fingerprint of every target that ``target_for`` may give now."""
        if isinstance(self.choice, Target):
            return [self.choice.fingerprint]
        if self.choice != "auto":
            return [Target.load(self.choice).fingerprint]
        devices = {"cpu", _planned_device("meta")}
        names = sizes_of_groups()
        return sorted({self.target_for(d, name).fingerprint for d in devices for name in names})


def _planned_device(device: str) -> str:
    """Tensors on ``meta`` are planned for the accelerator of this machine, or its processor."""
    if device != "meta":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
