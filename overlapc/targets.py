"""Which machine a compilation plans for: the one the user names, else the one it runs on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from overlapc.calibration import find_target, shipped_target
from overlapc.errors import GroupError, TargetError
from overlapc.planning.target import Target
from overlapc.runtime.planned_devices import planned_device
from overlapc.runtime.ranks.groups import backend_name, resolve, sizes_of_groups


@dataclass(frozen=True)
class TargetChoice:
    """A user's ``target`` option, made concrete for each group."""

    choice: str | Target

    def target_for(self, device: str, group: str = "") -> Target:
        """Return the target for tensors of type ``device`` and the group of that name, if any.

        Raises ``TargetError`` for a choice that cannot be read, and for "auto" on a device that
        was neither calibrated nor has a shipped target.
        """
        if isinstance(self.choice, Target):
            return self.choice
        if self.choice != "auto":
            return Target.load(self.choice)
        planned = planned_device(device)
        if not group:
            return shipped_target(planned)
        living = resolve(group)
        return find_target(planned, backend_name(living, planned), living.size())

    def of_group(self, group: str) -> list[Target]:
        """Return the targets that graphs on that group may be planned for, in one order."""
        if self.choice != "auto":
            return [self.target_for("cpu", group)]
        found = set()
        for device in ("cpu", planned_device("meta")):
            with suppress(TargetError, GroupError):  # the pass refuses sites of such a device
                found.add(self.target_for(device, group))
        return sorted(found, key=lambda target: target.fingerprint)

    def all(self) -> list[Target]:
        """Return every target that ``target_for`` may give now, in the order of fingerprints."""
        names = sizes_of_groups() if self.choice == "auto" else [""]
        found = {target for name in names for target in self.of_group(name)}
        return sorted(found, key=lambda target: target.fingerprint)
