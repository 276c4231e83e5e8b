"""The order in which machine code stores, waits and counts where CTAs tell others what is done."""

from __future__ import annotations

import re

from tests.codegen.machine_loops import loops_of_ptx

BULK_STORE = re.compile(r"\bcp\.(reduce\.)?async\.bulk\S*\.global\.shared")
"""Of the TMA unit: no barrier orders it before a release, nor a wait for what it reads."""
STORE = re.compile(rf"\bst\.(\w+\.)?global|{BULK_STORE.pattern}")
BARRIER = re.compile(r"\bbar(rier)?\.sync\s+0;")
"""Of the whole CTA: one that names a number of threads is of some."""
# Releases of Triton differ in whether an unused result makes it a reduction.
RELEASE = re.compile(
    r"\b(red|atom)\.global\.gpu\.release\.add|"
    r"\b(red|atom)\.(release\.gpu\.global|global\.release\.gpu)\.add|"
    r"\b(red|atom)\.release\.gpu\.(global\.)?add"
)
BRANCH = re.compile(r"\bbra\b|\bret\b")
PART_READ = re.compile(r"\bld\.global\S*\.cg")
ARRIVAL = re.compile(r"\batom\S*\.acq_rel\S*\.add(?!\.u64)|\batom\.add\S*acq_rel")
MOVE = re.compile(r"\batom\S*\.relaxed\S*\.add\.u64|\bglobal_atomic_add_x2\b(?!.*sc0)")
"""Of the count of rows computed again, then of a sum that moves φ; with the arrival after them, the
only ones of 64 bits."""
SETTLING = re.compile(r"\batom\S*\.acq_rel\S*\.add\.u64|\bglobal_atomic_add_x2\b.*sc0")

PRODUCT = re.compile(r"\bwgmma\.mma_async|\btcgen05\.mma|\bmma\.sync|\bfma\.rn\.f32")
LABEL = re.compile(r"^(\$L__|\.L)BB\w+:")

AMD_STORE = re.compile(r"\b(global|buffer|flat)_store")
AMD_LOAD = re.compile(r"\b(global|buffer|flat)_load")
AMD_BARRIER = re.compile(r"\bs_barrier\b")
AMD_WRITE_BACK = re.compile(r"\bbuffer_wbl2\b")
AMD_ADD = re.compile(r"\bglobal_atomic_add\b")


def signal_order_faults(ptx: str, signals: bool, late: bool = False, *, ends: int = 1) -> list[str]:
    """What is wrong with the order stores of C -> CTA barrier -> release add in this PTX.

    No store may be one of the TMA unit. Every other and a release must stand in one straight line
    of code, the barrier between. A pipeline may end with its last tile in code of its own. Of a
    ``late`` kernel the barrier follows the stores in one straight line, so that no release is
    reached but by way of it, and as many as ``ends`` are behind its loop: one, and one more where a
    pipeline ends with a step in code of its own.
    """
    releases = lines_of(RELEASE, ptx.splitlines())
    if not signals:
        return ["a silent kernel releases"] if releases else []
    blocks = [block.splitlines() for block in re.split(r"^\$L__BB\w+:", ptx, flags=re.MULTILINE)]
    faults = ["a store by the TMA unit"] * bool(lines_of(BULK_STORE, ptx.splitlines()))
    if late:
        return faults + _late_faults(blocks) + _misplaced(ptx.splitlines(), ends)
    faults += [] if releases else ["no release adds"]
    for block in blocks:
        stores, barriers = lines_of(STORE, block), lines_of(BARRIER, block)
        release, *more = lines_of(RELEASE, block) or [None]
        faults += ["a tile is announced twice"] * bool(more)
        if release is None:
            faults += ["stores of C outside the block that releases"] * bool(stores)
        elif not stores or max(stores) > release:
            faults.append("a store after the release, or none before it")
        elif not any(max(stores) < at < release for at in barriers):
            faults.append("no CTA barrier between the last store and the release")
    return faults


def _late_faults(blocks: list[list[str]]) -> list[str]:
    """Behind the stores of a tile comes a barrier, and only then a release."""
    faults = []
    if not any(lines_of(STORE, block) for block in blocks):
        faults.append("no store of C")
    for block in blocks:
        if stores := lines_of(STORE, block):
            behind = block[max(stores) + 1 :]
            barrier = min(lines_of(BARRIER, behind), default=None)
            if barrier is None or lines_of(BRANCH, behind[:barrier]):
                faults.append("no CTA barrier behind the last store")
            if lines_of(RELEASE, block[min(stores) :][: max(stores) - min(stores)]):
                faults.append("a release among the stores")
            if lines_of(RELEASE, behind[:barrier]):
                faults.append("a release before the barrier")
    return faults


def _misplaced(lines: list[str], ends: int) -> list[str]:
    """One release stands among the steps of a product, the others behind the last tile."""
    steps = {at for loop in loops_of_ptx(lines) if any(PRODUCT.search(lines[at]) for at in loop)
             for at in loop}  # fmt: skip
    releases = lines_of(RELEASE, lines)
    among = sum(at in steps for at in releases)
    behind = sum(at > max(steps, default=-1) for at in releases)
    where = f"{among} release adds in the loop and {behind} behind it, of {len(releases)}"
    return [] if (among, behind) == (1, ends) else [where]


def arrival_faults(assembly: str, arrivals: int = 1) -> list[str]:
    """What is wrong with the order parts of sums -> CTA barrier -> arrival -> CTA barrier -> reads.

    One thread adds, with release and acquire at the scope of the device; the others' stores and
    reads hold on to it by the barriers around it alone. Each of several results has an arrival,
    its stores in a block behind the one before.
    """
    lines = assembly.splitlines()
    adds = amd_arrivals(lines) if is_amd(assembly) else lines_of(ARRIVAL, lines)
    if len(adds) != arrivals:
        return [f"{len(adds)} arrivals with release and acquire"]
    order = _amd_arrival_faults if is_amd(assembly) else _arrival_faults
    blocks = [max(lines_of(LABEL, lines[:add]), default=0) for add in adds[1:]]
    bounds = zip([0, *blocks], adds, [*blocks, len(lines)], strict=True)
    return [fault for first, add, end in bounds for fault in order(lines[first:end], add - first)]


def _arrival_faults(lines: list[str], add: int) -> list[str]:
    stores, barriers = lines_of(STORE, lines[:add]), lines_of(BARRIER, lines)
    reads = lines_of(PART_READ, lines)
    faults = []
    if not stores or not any(max(stores) < at < add for at in barriers):
        faults.append("no CTA barrier between the last store of parts and the arrival")
    if not reads or not any(add < at < min(reads) for at in barriers):
        faults.append("no CTA barrier between the arrival and the first read of parts")
    return faults


def settling_faults(assembly: str) -> list[str]:
    """What is wrong with the order moves of φ -> CTA barrier -> arrival -> CTA barrier -> reads."""
    lines = assembly.splitlines()
    moves, adds = lines_of(MOVE, lines), lines_of(SETTLING, lines)
    if len(moves) != 2 or len(adds) != 1:
        return [f"{len(moves) - 1} moves of φ, and {len(adds)} arrivals with release and acquire"]
    (_, move), (add,) = moves, adds
    barriers, reads = (AMD_BARRIER, AMD_LOAD) if is_amd(assembly) else (BARRIER, PART_READ)
    met = [at for at in lines_of(barriers, lines) if move < at < add]
    read = add + next(iter(lines_of(reads, lines[add:])), 0)
    faults = ["no CTA barrier between moves and the arrival"] * (not met)
    if not any(add < at < read for at in lines_of(barriers, lines)):
        faults.append("no CTA barrier between the arrival and the first read of moves")
    if is_amd(assembly):
        waits = any("vmcnt(0)" in line for line in lines[move : max(met, default=move)])
        faults += ["no wave waits for its moves before the barrier"] * (not waits)
        faults += ["an add that is no release"] * ("buffer_wbl2" not in _names(lines, add - 3, add))
    return faults


def settling_mutants(assembly: str) -> dict[str, str]:
    """The same code with one thing wrong around the arrival that moves φ."""
    lines = assembly.splitlines()
    (_, move), (add,) = lines_of(MOVE, lines), lines_of(SETTLING, lines)
    barriers, reads = (AMD_BARRIER, AMD_LOAD) if is_amd(assembly) else (BARRIER, PART_READ)
    read = add + lines_of(reads, lines[add:])[0]

    def without(pattern: re.Pattern[str], begin: int, end: int) -> str:
        kept = [line for line in lines[begin:end] if not pattern.search(line)]
        return "\n".join([*lines[:begin], *kept, *lines[end:]])

    wrong = {
        "no barrier before": without(barriers, move, add),
        "no barrier behind": without(barriers, add, read),
        "relaxed": without(re.compile("buffer_wbl2"), add - 3, add)
        if is_amd(assembly)
        else assembly.replace("acq_rel.add.u64", "relaxed.add.u64"),
    }
    if is_amd(assembly):
        wrong["no wait"] = without(re.compile(r"vmcnt\(0\)"), move, add)
    return wrong


def amd_signal_faults(text: str, signals: bool) -> list[str]:
    """What is wrong with the order stores of C -> each wave's wait for its own -> its write-back ->
    the wait for that -> CTA barrier -> add, a release, in this AMDGCN."""
    lines = text.splitlines()
    adds = lines_of(AMD_ADD, lines)
    if len(adds) != signals:
        return [f"{len(adds)} adds"]
    return [fault for add in adds for fault in _amd_faults_before(lines, add)]


def _amd_arrival_faults(lines: list[str], add: int) -> list[str]:
    """As of signals, and the wave that added invalidates the caches before others read."""
    faults = _amd_faults_before(lines, add)
    after = lines[add:]
    barrier = next(iter(lines_of(AMD_BARRIER, after)), len(after))
    invalidated = "s_waitcnt buffer_inv" in _names(after, 0, barrier)
    faults += ["an add that does not acquire"] * (not invalidated)
    faults += ["a read of parts before the barrier"] * bool(lines_of(AMD_LOAD, after[:barrier]))
    faults += ["no read of parts"] * (not lines_of(AMD_LOAD, after))
    return faults


def _amd_faults_before(lines: list[str], add: int) -> list[str]:
    """A barrier alone holds no store back, a release waits for the stores of one wave, and whether
    for its write-back depends on the compiler."""
    barrier = last_line(AMD_BARRIER, lines, add)
    store = last_line(AMD_STORE, lines, barrier)
    wanted = iter(("vmcnt(0)", "buffer_wbl2 sc1", "vmcnt(0)"))
    missing = next(wanted)
    for line in lines[store:barrier]:
        missing = next(wanted, "") if missing and missing in line else missing
    faults = [f"no {missing} of each wave before the barrier"] * bool(missing)
    released = "buffer_wbl2" in _names(lines, barrier, add)
    faults += ["an add that is no release"] * (not released)
    late = lines_of(AMD_STORE, lines[barrier:add])
    return faults + ["a store behind the barrier"] * bool(late)


def amd_arrivals(lines: list[str]) -> list[int]:
    """Adds behind a write-back; those of redone rows, which no CTA reads, are none."""
    return [at for at in lines_of(AMD_ADD, lines) if "buffer_wbl2" in _names(lines, at - 3, at)]


def amd_mutants(lines: list[str], add: int) -> dict[str, list[str]]:
    """The same code with one thing wrong before its add of that line."""
    barrier = last_line(AMD_BARRIER, lines, add)
    store = last_line(AMD_STORE, lines, barrier)
    hasty = [line for line in lines[store:barrier] if "vmcnt(0)" not in line]
    cached = [line for line in lines[store:barrier] if "buffer_wbl2" not in line]
    written = last_line(AMD_WRITE_BACK, lines, barrier)
    rash = [line for line in lines[written:barrier] if "vmcnt(0)" not in line]
    relaxed = [line for line in lines[barrier:add] if "buffer_wbl2" not in line]
    return {
        "no wait": [*lines[:store], *hasty, *lines[barrier:]],
        "no write-back": [*lines[:store], *cached, *lines[barrier:]],
        "no wait for the write-back": [*lines[:written], *rash, *lines[barrier:]],
        "relaxed": [*lines[:barrier], *relaxed, *lines[add:]],
        "store last": [*lines[: barrier + 1], lines[store], *lines[barrier + 1 :]],
        "twice": [*lines[: add + 1], *lines[add - 2 :]],
    }


def arrival_mutants(assembly: str) -> dict[str, str]:
    """The same code with one thing wrong around the arrival."""
    lines = assembly.splitlines()
    if is_amd(assembly):
        (add,) = amd_arrivals(lines)
        wrong = amd_mutants(lines, add)
        pattern, read = AMD_BARRIER, AMD_LOAD
        kept = [line for line in lines[add:] if "buffer_inv" not in line]
        wrong["no acquire"] = [*lines[:add], *kept]
    else:
        (add,) = lines_of(ARRIVAL, lines)
        pattern, read = BARRIER, PART_READ
        stored = last_line(STORE, lines, add)
        kept = [line for line in lines[stored:add] if not pattern.search(line)]
        relaxed = lines[add].replace("acq_rel", "relaxed")
        wrong = {
            "no barrier before": [*lines[:stored], *kept, *lines[add:]],
            "relaxed": [*lines[:add], relaxed, *lines[add + 1 :]],
        }
    first = add + lines_of(read, lines[add:])[0]
    kept = [line for line in lines[add:first] if not pattern.search(line)]
    wrong["no barrier behind"] = [*lines[:add], *kept, *lines[first:]]
    return {name: "\n".join(changed) for name, changed in wrong.items()}


def is_amd(assembly: str) -> bool:
    return ".amdgcn_target" in assembly


def lines_of(pattern: re.Pattern[str], lines: list[str]) -> list[int]:
    """Numbers of the lines in which it stands."""
    return [at for at, line in enumerate(lines) if pattern.search(line)]


def last_line(pattern: re.Pattern[str], lines: list[str], before: int) -> int:
    return max(lines_of(pattern, lines[:before]))


def _names(lines: list[str], begin: int, end: int) -> str:
    """Names of the instructions there, in one line."""
    return " ".join(line.split()[0] for line in lines[begin:end] if line.split())
