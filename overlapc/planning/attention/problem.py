"""One attention as a planner is told of it, and what is decided of it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlapc.planning.attention.policy import UNKNOWN, KnownScores
from overlapc.planning.attention.softmax import SiteScores
from overlapc.planning.attention.tile_names import PLANNED
from overlapc.planning.problem import ITEM_BYTES


@dataclass(frozen=True)
class AttentionProblem:
    """One attention: sizes, where symbolic hints, and what torch's kernels ask for."""

    batch: int
    heads: int
    """Of queries."""
    groups: int
    """Heads of queries that share one of keys."""
    rows: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: str
    device: str
    mask: str
    """"nothing", "causal", or "given": a tensor."""
    mask_comes: str = "given"
    """Where a tensor is from: "given" to the graph, "made" in it, or "constant"."""
    is_mask_trained: bool = False
    is_dense: bool = True
    """The last dimension of queries, keys and values has stride 1."""
    is_fused: bool = False
    """The graph calls torch's attention already, and torch has a fused kernel for it."""
    unfused: str = ""
    """Why torch has none, as a clause, where the graph calls its attention; else empty."""
    undoes_repeats: bool = False
    """It does so on repeated heads, which torch's kernel would take once."""
    why_only_torch: str = ""
    """Why no other attention can take the place of torch's, as a sentence; empty if one can."""
    prefix: bool = False
    """Its mask says which keys of a cache are valid: a number on the device."""
    is_kept_by_mask: bool = False
    """Its mask is a tensor that is not known while compiling, of booleans that leave keys out or of
    numbers that are added, and nothing else is done to its scores."""
    why_whole: str = ""
    """Why it does not, where it looks like it."""
    dead: str = ""
    """What eager gives a row that keeps no key, as ``masks.Mask`` says it; empty: there is none."""
    is_trained: bool = False
    """A gradient is wanted of queries, keys or values."""
    is_plain: bool = False
    """Nothing but a scale and a mask is between its products, but perhaps sinks beside them."""
    rounds: bool = False
    """The graph rounds scores to ``dtype``: their product is of no wider one."""
    untold: tuple[str, str] | None = None
    """Code and reason where torch's attention cannot be told the same."""
    why_no_gradient: str = ""
    """Why kernels of our own cannot give the gradients that are wanted; empty: they can."""
    runs_kernels: bool = False
    """Generated kernels run on devices of its type."""
    architecture: str = ""
    """Of the device, as targets name it; empty of processors."""
    scores: KnownScores = UNKNOWN
    """What is known of them."""
    varying: tuple[str, ...] = ()
    """Names of the sizes that vary: "rows", "keys"."""
    multiprocessors: int = 1
    """Of the device."""
    threads: int = 1
    """That share the work on a processor."""
    prompts: SiteScores | None = None
    """What a user's prompts said of its scores, where that is known."""
    narrow: str = ""
    """The dtype of a cache of keys and values that the graph widens; empty: it widens none."""
    is_latent: bool = False
    """Its keys begin with their values, and each is read once; ``head_dim`` is of whole keys."""
    latent: AttentionProblem | None = None
    """The same as such a one, whether the graph has keys whole or as two products that are added;
    None where a kernel of our own would not read it so."""
    is_broadcast: bool = False
    """Queries that share a head of keys do by broadcasting it: eager copies none."""
    splits: int = 0
    """CTAs among which a kernel of our own shares the keys; 0: rows are too many for it to."""
    reads: int = 1
    """How often such a kernel reads each key: for each block of the rows that share it."""
    tile: str = PLANNED
    """Which tile it takes, as a measurement named it; the two before are of ``PLANNED``."""

    @property
    def own(self) -> AttentionProblem:
        """What a kernel of our own is given: with gradients no latent cache is read as one."""
        latent = self.latent
        if latent is None or self.is_trained or latent.is_trained or latent.is_mask_trained:
            return self
        return replace(latent, prompts=self.prompts, tile=self.tile)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, each head once."""
        elements = self.batch * self.heads // self.groups * self.keys
        columns = self.head_dim if self.is_latent else self.head_dim + self.value_dim
        return elements * columns * ITEM_BYTES.get(self.dtype, 4)

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores, which a fused kernel does not store."""
        return self.batch * self.heads * self.rows * self.keys * ITEM_BYTES.get(self.dtype, 4)

    @property
    def is_static(self) -> bool:
        """No size varies."""
        return not self.varying

    def text(self) -> str:
        """Return the sizes as a person reads them, those that vary marked."""
        heads = f"{self.heads}/{self.heads // self.groups}" if self.groups > 1 else str(self.heads)
        dims = "" if self.value_dim == self.head_dim else f"/{self.value_dim}"
        sizes = {
            "batch": self.batch,
            "heads": heads,
            "rows": self.rows,
            "keys": self.keys,
            "head_dim": f"{self.head_dim}{dims}",
        }
        texts = (f"{'~' if name in self.varying else ''}{size}" for name, size in sizes.items())
        return f"{'x'.join(texts)} {self.dtype}"


@dataclass(frozen=True)
class Verdict:
    """What is to become of one attention, and why."""

    decision: str
    """"rewritten", "kept" or "refused"."""
    code: str
    reason: str
    policy: str = ""
    """Where φ comes from in a kernel of our own, as `codegen.attention.policies` names it, wherever
    our op finds that one runs; empty: torch's attention is put in."""
    phi: float = 0.0
    """φ, where the policy takes a number of the spec."""
    of_heads: tuple[float, ...] = ()
    """φ of each head, where it takes those."""
    reads_narrow: bool = False
    """A kernel of our own reads keys and values as they were before the graph widened them."""
    reads_latent: bool = False
    """It reads values as the beginnings of keys."""
    rounds: bool = False
    """Our op may round scores, as the graph does."""
    tile: str = PLANNED
    """Which tile it takes."""
