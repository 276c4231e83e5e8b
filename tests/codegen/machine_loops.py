"""The loops of a kernel in the instructions that a device of NVIDIA runs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """One innermost or outer loop: what lies between a label and a branch back to it."""

    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """Instructions whose name begins with one of the alternatives of ``pattern``."""
        names = re.compile(rf"(@!?\w+\s+)?({pattern})\b")
        return sum(bool(names.match(text)) for text in self.instructions)


def loops_of(cubin: bytes) -> list[Loop]:
    """The loops of a kernel in the order of their code."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in _disassembled(cubin).splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    found = []
    for end, text in enumerate(instructions):
        branch = re.search(r"BRA.*`\((\.L\w+)\)", text)
        start = labels.get(branch[1], end + 1) if branch else end + 1
        if start < end:
            found.append((start, Loop(tuple(instructions[start : end + 1]))))
    return [loop for _, loop in sorted(found, key=lambda pair: pair[0])]


def _disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
