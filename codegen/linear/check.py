"""One run of a generated linear layer on random operands, against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlapc.codegen.linear.kernel import LinearKernel
from overlapc.codegen.linear.spec import INTEGERS, LinearSpec
from overlapc.codegen.module_check import check_module
from overlapc.codegen.oracle import error_over_bound, random_input, random_operand

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_INTEGER = 127
LARGEST_UNSIGNED = 255


@dataclass(frozen=True)
class LinearCase:
    """Operands of one call, and a C that holds nothing but NaN."""

    kernel: LinearKernel
    x: Tensor
    weights: list[Tensor]
    outs: list[Tensor]
    inputs: list[list[Tensor]]
    scales: list[Tensor]
    zeros: list[Tensor]
    gain: Tensor | None
    parts: Tensor
    arrivals: Tensor

    @classmethod
    def random(cls, kernel: LinearKernel, sizes: tuple[int, int, int], device: str) -> LinearCase:
        """m, n and k; further results have fewer columns each."""
        import torch

        (m, n, k), spec = sizes, kernel.spec
        columns = [max(1, n - index * (n // 3 + 1)) for index in range(spec.results)]
        of_weights = [size for size in columns for _ in range(spec.weights)]
        poison = torch.full((), torch.nan, device=device).to(getattr(torch, spec.out))
        return cls(
            kernel,
            random_operand("row", m, k, spec.dtype, device),
            [random_weight(spec, k, size, device) for size in of_weights],
            [poison.expand(m, size).contiguous() for size in columns],
            [[random_input(i, m, size, device) for i in spec.chain.inputs] for size in columns],
            [random_scales(spec, k, size, device) for size in of_weights if spec.scales],
            [random_zeros(spec, k, size, device) for size in of_weights if spec.zeros],
            random_operand("row", 1, k, spec.gain, device)[0] if spec.gain else None,
            torch.full((max(1, kernel.part_elements(columns)),), torch.nan, device=device),
            torch.zeros(max(1, kernel.tiles(columns)), dtype=torch.int32, device=device),
        )

    def run(self) -> None:
        """Call the kernel."""
        self.kernel(self.x, self.weights, self.outs, inputs=self.inputs, scales=self.scales,
                    zeros=self.zeros, gain=self.gain, parts=self.parts,
                    arrivals=self.arrivals)  # fmt: skip

    def error(self) -> float:
        """The largest error of any C, over what roundings explain; infinite where a counter is not
        zero again."""
        if self.arrivals.any():
            return float("inf")
        spec, held = self.kernel.spec, self._held()
        errors = []
        for index, (c, inputs) in enumerate(zip(self.outs, self.inputs, strict=True)):
            its = held[index * spec.weights : (index + 1) * spec.weights]
            errors.append(error_over_bound(spec, self._rows(), its, None, c, inputs))
        return max(errors)

    def _rows(self) -> Tensor:
        """What is multiplied: rows and gain are rounded together, the norm scales in float64."""
        if not self.kernel.spec.norm:
            return self.x
        rows = (
            self.x
            if self.gain is None
            else (self.x.float() * (self.gain.float() + self.kernel.spec.shift))
        )
        mean = self.x.double().square().mean(1, keepdim=True)
        return rows.to(self.x.dtype).double() / (mean + self.kernel.spec.eps).sqrt()

    def _held(self) -> list[Tensor]:
        """What x is multiplied by: scales of groups are rounded with the weight, as in eager."""
        spec = self.kernel.spec
        wide = [weight.to(self.x.dtype) for weight in self.weights]
        if spec.zeros:
            pairs = zip(wide, map(self._spread, self.zeros), strict=True)
            wide = [(w.to(z.dtype) - z if z.is_floating_point() else w - z.to(w.dtype))
                    for w, z in pairs]  # fmt: skip
            wide = [w.to(self.x.dtype) for w in wide] if not spec.group else wide
        if not spec.scales:
            return wide
        if not spec.group:
            return [w.double() * scale.double() for w, scale in zip(wide, self.scales, strict=True)]
        pairs = zip(wide, map(self._spread, self.scales), strict=True)
        return [(w.float() * scale.float()).to(self.x.dtype) for w, scale in pairs]

    def _spread(self, of_groups: Tensor) -> Tensor:
        """One of every k from one of every group."""
        group, k = self.kernel.spec.group, self.x.shape[1]
        return of_groups.repeat_interleave(group, 0)[:k] if group else of_groups


def random_weight(spec: LinearSpec, k: int, n: int, device: str) -> Tensor:
    """A random weight ``[k, n]`` in the layout and dtype in which a spec holds it."""
    import torch

    if spec.held not in INTEGERS:
        return random_operand(spec.weight, k, n, spec.held or spec.dtype, device)
    wide = random_operand(spec.weight, k, n, "float32", device)
    # Into the strides of the operand: a cast keeps those of dense tensors alone.
    narrow = torch.empty_strided(
        wide.shape, wide.stride(), dtype=getattr(torch, spec.held), device=device
    )
    low, high = limits(spec.held)
    return narrow.copy_((wide * 32 + (low + high) // 2).clamp(low, high).round())


def random_scales(spec: LinearSpec, k: int, n: int, device: str) -> Tensor:
    """Random scales of a weight ``[k, n]``, away from zero, of strides of their own."""
    import torch

    made = 0.5 + torch.rand(n, 2 * _groups(spec, k), device=device)
    return made.to(getattr(torch, spec.scales))[:, ::2].t()


def random_zeros(spec: LinearSpec, k: int, n: int, device: str) -> Tensor:
    """Random zero points of a weight ``[k, n]``, of strides of their own."""
    import torch

    shape = (_groups(spec, k), n, 2)
    low, high = limits(spec.held)
    made = torch.randint(low, high, shape, device=device)
    dtype = getattr(torch, spec.zeros)
    # Of floating ones hardly any is a whole number.
    made = made + torch.rand(shape, device=device) if dtype.is_floating_point else made
    return made.to(dtype)[:, :, 0]


def limits(held: str) -> tuple[int, int]:
    """The least and the largest number of random integers of a dtype."""
    return (0, LARGEST_UNSIGNED) if held == "uint8" else (-LARGEST_INTEGER, LARGEST_INTEGER)


def _groups(spec: LinearSpec, k: int) -> int:
    return -(-k // spec.group) if spec.group else 1


def main(file: str) -> int:
    """Check the generated module at ``file``; returns the exit code of the process."""
    _, is_right, _ = check_module(
        file,
        lambda path, module: LinearKernel(LinearSpec.parse(module.SPEC), path, module),
        _sizes,
        _check,
    )
    return 0 if is_right else 1


def _check(kernel: LinearKernel, sizes: tuple[int, int, int], device: str) -> float:
    case = LinearCase.random(kernel, sizes, device)
    case.run()
    return case.error()


def _sizes(spec: LinearSpec) -> list[tuple[int, int, int]]:
    depth = spec.block_k * 2 * spec.splits + (0 if spec.even_k else 3)
    return [(spec.rows, 2 * spec.block_n, depth), (max(1, spec.rows - 3), spec.block_n + 7, depth)]
