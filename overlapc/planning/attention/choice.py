"""Whether a kernel of our own computes an attention on a GPU: where it was measured to be faster.

Where nothing was measured the library's stays, and the reason says whether a trial is worth while.
Bytes are what few rows over many keys cost: a prediction counts those that each way reads and
writes, and how much of the memory's rate its CTAs can ask for; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlapc.planning.attention.decision import decide
from overlapc.planning.attention.decode_splits import AGAIN_RATE
from overlapc.planning.attention.own import why_not_own
from overlapc.planning.attention.problem import AttentionProblem, Verdict
from overlapc.planning.attention.table import AttentionTable, shape_of
from overlapc.planning.attention.tile_names import PLANNED

OWN_SHARE, LIBRARY_SHARE = 0.5, 0.8
"""Of the memory's rate that a kernel reaches whose CTAs fill the device: assumed, ours badly, for
none of ours was timed."""
LAUNCH_BYTES = 13e6
"""What a launch costs, in bytes: 4 us of the 3.35 TB/s of targets/h100-nvlink.json."""
LEAST_PREDICTED = 1.5
"""How many times as fast as torch's a kernel of ours has to be predicted to be worth a trial:
chosen, wider than what the assumed shares may be wrong by."""
KEPT_SHARE = 0.25
"""Of keys that a given mask is taken to keep, as of a static cache of 8192 that holds 2048: assumed
to say whether to try."""
TRY = "but none has run here: overlapc calibrate --attention tries it"


AUTO = "auto"


def decide_on_gpu(problem: AttentionProblem, table: AttentionTable | None) -> Verdict:
    """Decide on an attention of a GPU under option ``softmax="auto"``."""
    left = decide(problem, AUTO)
    is_trained = problem.is_trained or problem.is_mask_trained  # of a backward nothing is known
    # Where the graph calls torch's attention on a latent cache, that was not timed beside ours.
    is_untimed = problem.is_fused and problem.own.is_latent
    if is_trained or is_untimed or why_not_own(problem.own):
        return left
    choice = choose_on_gpu(problem.own, table)
    if not choice.is_own:
        is_told = problem.is_fused or problem.own.is_latent
        return Verdict("kept", choice.code, choice.reason) if is_told else left
    own = decide(replace(problem, tile=choice.tile), "unified")
    return replace(own, code=choice.code, reason=f"{own.reason} {choice.reason}")


@dataclass(frozen=True)
class Choice:
    """Ours or the library's, and why."""

    is_own: bool
    code: str
    reason: str
    """A sentence."""
    tile: str = PLANNED
    """Of ours, which was measured."""


def choose_on_gpu(problem: AttentionProblem, table: AttentionTable | None) -> Choice:
    """Choose for one attention that both can compute; None: nothing was measured here."""
    is_measurable = problem.is_static and problem.untold is None
    rival = "the products of the graph" if problem.is_latent else "torch's attention"
    entry = table.entry(shape_of(problem)) if table and is_measurable else None
    if entry is not None:
        won = entry.gain_at(problem.keys)
        if won is None:
            reason = f"Nothing was measured to beat {rival} at {problem.keys} keys."
            return Choice(False, "library", reason)
        part = won.quarter_median
        of_part = f", {part:.2f} times where its mask keeps a quarter of the keys" if part else ""
        reason = f"Measured here: {won.median:.2f} times as fast as {rival}{of_part}."
        return Choice(True, "measured", reason, won.tile)
    if not problem.splits or not problem.is_static:
        reason = "Rows are many or vary, and no kernel of ours was measured to beat torch's there."
        return Choice(False, "not_measured", reason)
    ratio = library_bytes(problem) / own_bytes(problem)
    if ratio < LEAST_PREDICTED:
        reason = (
            f"Predicted {ratio:.2g} times as fast as {rival}, and a trial is worth while from "
            f"{LEAST_PREDICTED:g} on."
        )
        return Choice(False, "library", reason)
    why = _why_slow(problem)
    reason = (
        f"A kernel of ours is predicted {ratio:.2g} times as fast as {rival}, for {why}, {TRY}."
    )
    return Choice(False, "predicted", reason)


def own_bytes(problem: AttentionProblem) -> float:
    """What the decode kernel takes, in bytes at the whole rate: the cache, however full, but of
    what a mask may leave out the share that it keeps; from memory once, and again from the L2 cache
    for each block of rows."""
    units = problem.batch * (problem.heads // problem.groups)
    ctas = units * problem.reads * problem.splits
    launches = 2 if problem.splits > 1 else 1  # one sets the counters back
    reached = OWN_SHARE * min(1.0, ctas / problem.multiprocessors)
    share = KEPT_SHARE if problem.is_kept_by_mask and not problem.prefix else 1.0
    read = max(1.0, problem.reads / AGAIN_RATE) * problem.cache_bytes
    return share * read / reached + launches * LAUNCH_BYTES


def library_bytes(problem: AttentionProblem) -> float:
    """The same of torch's attention, as it stands in the graph.

    Under a mask none of its kernels takes heads that queries share, or shares keys out among CTAs:
    heads are copied, and one CTA reads all keys of one of them. A latent cache it is not called on:
    the graph multiplies keys, then values once more, and writes and reads scores twice.
    """
    if problem.is_latent:
        again = problem.cache_bytes * problem.value_dim / problem.head_dim
        return (problem.cache_bytes + again + 4 * problem.score_bytes) / LIBRARY_SHARE + (
            4 * LAUNCH_BYTES
        )
    if problem.mask != "given":
        return problem.cache_bytes / LIBRARY_SHARE + 2 * LAUNCH_BYTES
    reached = LIBRARY_SHARE * min(1.0, problem.batch * problem.heads / problem.multiprocessors)
    if problem.groups == 1:
        return problem.cache_bytes / reached + LAUNCH_BYTES
    copied = problem.cache_bytes * problem.groups
    copying = (problem.cache_bytes + copied) / LIBRARY_SHARE + 2 * LAUNCH_BYTES
    return copying + copied / reached + LAUNCH_BYTES


def _why_slow(problem: AttentionProblem) -> str:
    """What keeps torch's attention from the rate."""
    if problem.is_latent:
        return "they read values again behind keys, and store scores"
    found = []
    if problem.groups > 1:
        found.append(f"under a mask it copies each head of keys {problem.groups} times")
    idle = problem.multiprocessors - problem.batch * problem.heads
    if idle > 0:
        found.append(f"it leaves {idle} of {problem.multiprocessors} multiprocessors idle")
    return " and ".join(found) or "it reads more"
