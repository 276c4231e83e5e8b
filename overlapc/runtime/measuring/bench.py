"""A stopwatch for one rank of a group whose members all do the same, and the rates of its GEMMs."""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from overlapc.errors import GroupError, OverlapcError
from overlapc.planning.fitting import GemmSample, fit_gemm, rounded
from overlapc.planning.problem import ITEM_BYTES, PER_TENSOR
from overlapc.planning.rates import GemmRates
from overlapc.planning.tiles import FP8
from overlapc.runtime.ranks import patience
from overlapc.runtime.ranks.groups import backend_name

Value = TypeVar("Value")

GEMM_ROWS = (16, 32, 64, 128, 256, 512)
GEMM_WIDTHS = (
    (256, 256),
    (512, 512),
    (1024, 1024),
    (2048, 2048),
    (1024, 4096),
    (4096, 1024),
    (4096, 4096),
)
"""Columns and contracted sizes: chosen to span what the shards of small models have. The smallest
are there for the time of a call, which larger ones do not tell."""

FEWEST_SAMPLES = 10
"""For three rates; where time runs out after them, the others are left out."""

REST_SECONDS = 0.02
"""Of compute before a timed collective, about what comes before one in a model: caches are warm
with other things, and a link that saves up credit while idle has saved it up."""

GEMM_BESIDE = (32, 2048, 2048)
"""Rows, columns and contracted size of the GEMM that runs before and beside collectives: a few
milliseconds on a core, so that many fit, and like a plan's small groups, which feel it most."""

STAND_IN_SECONDS = 0.5
"""Of that GEMM, a few milliseconds by any library; torch's own loop over float8 took 8 s."""

POINTWISE_BYTES = 1 << 26
"""Read and written by the pointwise work that is timed: more than caches hold."""


@dataclass(frozen=True)
class Bench:
    """One rank's stopwatch for a group whose members all do the same at the same time."""

    group: dist.ProcessGroup
    device: torch.device
    """Where this rank computes."""
    backend: str
    """Backend of the group, as torch names it."""
    world_size: int

    @staticmethod
    def of(group: dist.ProcessGroup | None) -> Bench:
        """The bench of a group, or of the default one; ValueError where there is none, GroupError
        where a member failed before."""
        group = group or dist.group.WORLD
        if group is None:
            raise ValueError("there is no default process group.")
        # A group of several backends is measured where its GPUs are.
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        backend, size = backend_name(group, kind), dist.get_world_size(group)
        if size < 1:
            raise ValueError("this process is no member of the group.")
        try:
            patience.check(group)
        except LookupError as error:
            raise ValueError("it was destroyed.") from error
        device = torch.device("cpu")
        if backend == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        return Bench(group, device, backend, size)

    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes to measure GEMMs of."""
        return ("float32", "bfloat16", FP8[0]) if self.device.type == "cuda" else ("float32",)

    def architecture(self) -> str:
        """What kernels are generated for here, such as ``sm_90``; empty on a processor."""
        if self.device.type != "cuda":
            return ""
        if torch.version.hip:
            return torch.cuda.get_device_properties(self.device).gcnArchName.split(":")[0]
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    def conditions(self) -> str:
        """What was measured, for the target's source."""
        what = f"{torch.get_num_threads()} threads a rank"
        if self.device.type == "cuda":
            what = torch.cuda.get_device_name(self.device)
        return f"measured by overlapc calibrate: {what}, torch {torch.__version__}"

    # Seconds and agreement

    def now(self) -> float:
        """Seconds, after everything issued on this rank is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], Any]) -> float:
        """Seconds of one call on this rank."""
        start = self.now()
        call()
        return self.now() - start

    def together(self) -> None:
        """Wait until every member is here."""
        self._wait(dist.barrier(self.group, async_op=True))

    def slowest(self, seconds: float) -> float:
        """The largest of the members' values, on all of them: what decisions are made from."""
        value = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        self._wait(dist.all_reduce(value, dist.ReduceOp.MAX, self.group, async_op=True))
        return float(value)

    def _wait(self, work: dist.Work | None) -> None:
        if work is not None:
            patience.wait(self.group, work, self.device)

    def agree(self, value: Value) -> Value:
        """Rank 0's value on every member; any that can be pickled."""
        return self._gathered(value if dist.get_rank(self.group) == 0 else None)[0]

    def refusal(self, said: str) -> str:
        """What members say against something, each with its rank; empty if none says anything."""
        if not self.slowest(float(bool(said))):
            return ""
        texts = self._gathered(said)
        return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)

    def _gathered(self, value: Any) -> list[Any]:
        """Every member's value, by rank. Not as torch gathers objects: that waits without looking
        whether a member failed."""
        mine = pickle.dumps(value)
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        self._gather(sizes, torch.tensor([len(mine)], device=self.device))
        padded = mine.ljust(int(sizes.max()))
        sent = torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(self.device)
        come = sent.new_empty(self.world_size * len(padded))
        self._gather(come, sent)
        return [pickle.loads(part.numpy().tobytes()) for part in come.cpu().chunk(self.world_size)]

    def _gather(self, come: torch.Tensor, sent: torch.Tensor) -> None:
        parts = list(come.chunk(self.world_size))
        self._wait(dist.all_gather(parts, sent, self.group, async_op=True))

    def by_first(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns on rank 0, where alone it is called, on every member.

        An error there is raised on every member: else the others would wait for a value.
        """
        made, failed = None, None
        with patience.failures_told(self.group, "what rank 0 does for all members of a group"):
            if dist.get_rank(self.group) == 0:
                try:
                    made = make()
                except OverlapcError as error:
                    failed = error
                except Exception as error:
                    failed = GroupError(
                        f"Rank 0 failed: {error!r}.",
                        where="what rank 0 does for all members of a group",
                        remedy="see to the error there, and call it again on every member",
                    )
            made, failed = self.agree((made, failed))
        if failed is not None:
            raise failed
        return cast("Value", made)

    # GEMM

    def why_no_gemm(self, dtype: str, scales: str = "") -> str:
        """Why GEMMs of a dtype cannot be measured on some member; empty where they can on all."""
        said = ""
        try:
            call = self.mm(*GEMM_BESIDE, dtype, scales)
            call()  # which may load a library
            if (taken := min(self.repeat(call, 0.0))) > STAND_IN_SECONDS:
                said = f"no library computes them, for one of few rows took {taken:.1f} s"
        except OverlapcError:
            raise
        except (RuntimeError, ValueError) as error:
            said = str(error) or type(error).__name__
        return self.refusal(said)

    def gemm(self, dtype: str, seconds: float, scales: str = "") -> GemmRates:
        """Rates of `mm`, while all members compute."""
        shapes = sorted(product(GEMM_ROWS, GEMM_WIDTHS), key=lambda s: s[0] * s[1][0] * s[1][1])
        # Every part of the range early on: time may run out.
        shapes = [*shapes[::4], *shapes[2::4], *shapes[1::2]]
        share, spent = seconds / len(shapes), 0.0
        samples: list[GemmSample] = []
        for rows, (n, k) in shapes:
            if spent > seconds and len(samples) >= FEWEST_SAMPLES:
                break
            call = self.mm(rows, n, k, dtype, scales)
            call()
            self.together()
            taken = self.slowest(statistics.median(self.repeat(call, share)))
            samples.append(GemmSample(rows, n, k, taken))
            spent += max(share, 3 * taken)
        rates = fit_gemm(self._gemm_shape(dtype), samples, ITEM_BYTES[dtype])
        return replace(rates, pointwise_bytes_per_second=self._pointwise(dtype), scales=scales)

    def _gemm_shape(self, dtype: str) -> GemmRates:
        if self.device.type == "cpu":
            return GemmRates(dtype, 1.0, 0.0, pack_bytes_per_second=1.0)
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return GemmRates(dtype, 1.0, 0.0, tile_rows=128, tile_columns=256, resident=processors)

    def _pointwise(self, dtype: str) -> float:
        """Bytes that an addition reads and writes a second; beside float8 none is of that."""
        kind = torch.bfloat16 if dtype in FP8 else getattr(torch, dtype)
        left, right, out = torch.ones(3, POINTWISE_BYTES // 3 // kind.itemsize).to(
            self.device, kind
        )
        self.together()
        times = self.repeat(lambda: torch.add(left, right, out=out), 0.0)
        times += self.repeat(lambda: torch.add(left, right, out=out), 0.0)
        return rounded(3 * out.nbytes / self.slowest(statistics.median(times)))

    def mm(self, rows: int, n: int, k: int, dtype: str, scales: str = "") -> Callable[[], Any]:
        """A GEMM of random operands into rows of an output, to be called again and again.

        B is a transposed weight, as in a linear layer. Of float8 the GEMM has a scale for each row
        of A and column of B, or one for each where ``scales`` is "tensor", and gives bfloat16. B is
        float8_e4m3fn then: no library multiplies two of the other.
        """
        kind = getattr(torch, dtype)
        kinds = (kind, getattr(torch, FP8[0])) if dtype in FP8 else (kind, kind)
        left, weight = (
            torch.randn(shape, device=self.device).to(kind)
            for shape, kind in zip(((rows, k), (n, k)), kinds, strict=True)
        )
        kind = torch.bfloat16 if dtype in FP8 else kind
        out = torch.empty(rows, n, dtype=kind, device=self.device)
        if dtype not in FP8:
            return lambda: torch.mm(left, weight.t(), out=out)
        sizes = ((), ()) if scales == PER_TENSOR else ((rows, 1), (1, n))
        of_a, of_b = (torch.ones(size, device=self.device) for size in sizes)
        return lambda: torch.ops.aten._scaled_mm.out(
            left, weight.t(), of_a, of_b, out_dtype=kind, out=out
        )

    def repeat(self, call: Callable[[], Any], seconds: float) -> list[float]:
        """Times of at least two calls, and of as many as fit."""
        times = [self.seconds(call), self.seconds(call)]
        while sum(times) < seconds:
            times.append(self.seconds(call))
        return times

    # Beside collectives

    def rest(self) -> None:
        """Let links idle while this rank computes, until every member is here."""
        start = self.now()
        while self.now() - start < REST_SECONDS:
            self._beside()
        self.together()

    @cached_property
    def _beside(self) -> Callable[[], Any]:
        return self.mm(*GEMM_BESIDE, "float32")

    def computed(self) -> None:
        """Wait for this rank's GEMMs, and not for its collectives."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
