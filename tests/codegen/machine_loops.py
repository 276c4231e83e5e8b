"""The loops of a kernel in the code of NVIDIA's devices: what they run, and the PTX before it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """One innermost or outer loop: what lies between a label and a branch back to it."""

    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """Instructions whose name begins with one of the alternatives of ``pattern``."""
        names = re.compile(rf"(@!?\w+\s+)?({pattern})\b")
        return sum(bool(names.match(text)) for text in self.instructions)

    def in_flight(self, pattern: str) -> int:
        """Of those, the ones that run while a product of a warp group does; what a turn leaves in
        flight is so at the beginning of the next."""
        names = re.compile(rf"(@!?\w+\s+)?({pattern})\b")
        flies, count = False, 0
        for turn, text in ((turn, text) for turn in range(2) for text in self.instructions):
            if "HGMMA" in text:
                flies = True
            elif "WARPGROUP.DEPBAR.LE gsb0, 0x0" in text:
                flies = False
            elif turn and names.match(text):
                count += flies
        return count


def loops_of(cubin: bytes) -> list[Loop]:
    """The loops of a kernel in the order of their code."""
    return [loop for _, loop in _found_in(cubin)]


def inner_loops_of(cubin: bytes, pattern: str) -> list[Loop]:
    """Of those with instructions of ``pattern``, the ones that hold no other of them; and return
    by no branch that stands behind the end of the kernel, as what waits there does."""
    found = [(lines, loop) for lines, loop in _found_in(cubin)
             if loop.count(pattern) and not loop.count("EXIT")]  # fmt: skip
    return [
        loop
        for lines, loop in found
        if not any(lines.start <= own.start and own.stop <= lines.stop
                   for own, _ in found if own != lines)
    ]  # fmt: skip


def _found_in(cubin: bytes) -> list[tuple[range, Loop]]:
    lines = _disassembled(cubin).splitlines()
    found = []
    for lines_of_loop in loops_in(lines, r"\s*(\.L\w+):", r"BRA.*`\((\.L\w+)\)"):
        instructions = [re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", lines[at])
                        for at in lines_of_loop]  # fmt: skip
        loop = Loop(tuple(instruction[1] for instruction in instructions if instruction))
        found.append((lines_of_loop, loop))
    return [(lines_of_loop, loop) for lines_of_loop, loop in found if len(loop.instructions) > 1]


def loops_of_ptx(lines: Sequence[str]) -> list[range]:
    """The loops of PTX, each as the numbers of its lines."""
    return loops_in(lines, r"(\$L__BB\w+):", r"\bbra\S*\s+(\$L__BB\w+)")


def loops_in(lines: Sequence[str], label: str, branch: str) -> list[range]:
    """Lines from a label to a branch back to it, given what names it in either."""
    labels = {found[1]: at for at, line in enumerate(lines) if (found := re.match(label, line))}
    back = ((labels.get(found[1], at), at) for at, line in enumerate(lines)
            if (found := re.search(branch, line)))  # fmt: skip
    return sorted((range(start, end + 1) for start, end in back if start < end),
                  key=lambda loop: loop.start)  # fmt: skip


def _disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def written_too_soon(assembly: str) -> list[str]:
    """Instructions in loops of PTX that write a register which a product of a warp group reads that
    may be under way: what comes of that PTX does not say."""
    lines = assembly.splitlines()
    found = []
    for loop in loops_of_ptx(lines):
        begun: set[str] = set()
        groups: list[set[str]] = []
        for line in [lines[at].strip() for at in loop] * 2:
            if "wgmma.mma_async" in line:
                operands = re.findall(r"\{([^}]*)\}", line)
                begun |= set(re.findall(r"%\w+", operands[1])) if len(operands) > 1 else set()
            elif "wgmma.commit_group" in line:
                groups, begun = [*groups, begun], set()
            elif left := re.search(r"wgmma\.wait_group\S* (\d+)", line):
                groups = groups[len(groups) - int(left[1]) :]
            elif set(_written(line)) & begun.union(*groups):
                found.append(line)
    return found


def _written(line: str) -> list[str]:
    """The registers that an instruction of PTX writes, which it names first."""
    found = re.match(r"(?:@!?%\w+\s+)?[a-z][\w.:]*\s+(\{[^}]*\}|%\w+)", line)
    is_store = re.match(r"(?:@!?%\w+\s+)?(st|red|bra|mbarrier|cp)\b", line)
    return [] if found is None or is_store else re.findall(r"%\w+", found[1])
