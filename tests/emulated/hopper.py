"""Instructions that sm_90 has beside those of older devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulated.assembly import Address, Instruction, Number, Vector
from tests.emulated.matrix_unit import GROUP, Place, registers_of, result_of
from tests.emulated.memory import BadAccess
from tests.emulated.tensor_maps import Arrivals
from tests.emulated.threads import RUNS, WAITS_FOR_ARRIVALS, Cta
from tests.emulated.values import FACTOR_BYTES, UNSIGNED, bits_of, factors_of, typed
from tests.emulated.warps import LANES

ARRIVES = "mbarrier__complete_tx__bytes"


def elect(cta: Cta, instruction: Instruction, active: Any) -> None:
    """The first thread of each warp that is there."""
    to, truth, _ = instruction.operands
    by_warp = active.reshape(-1, LANES)
    first = np.repeat(by_warp.argmax(1), LANES)
    cta.set_bits(to, first.astype(np.uint32), active)
    cta.set_bits(truth, (cta.lane % LANES == first).astype(np.uint8), active)


def fence(cta: Cta, instruction: Instruction, active: Any) -> None:
    """Units beside the threads see what these wrote to shared memory behind one alone."""
    if instruction.marks[:2] == ("proxy", "async"):
        cta.shared.show(np.unique(cta.warps[active]))


def barrier_of_arrivals(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``mbarrier``."""
    how = instruction.marks[0]
    truth = instruction.operands[0] if how == "try_wait" else None
    where = next(each for each in instruction.operands if isinstance(each, Address))
    at = cta.addresses(where, 4)
    phases = sum(each.phase for each in cta.arrivals.values())
    for thread in np.flatnonzero(active):
        place = int(at[thread])
        if how == "init":
            count = instruction.operands[1]
            cta.arrivals[place] = Arrivals(int(cta.bits(count, 4)[thread]))
            continue
        if place not in cta.arrivals:
            raise BadAccess("a barrier that was not made")
        barrier = cta.arrivals[place]
        if how == "inval":
            del cta.arrivals[place]
        elif how == "arrive":
            expected = instruction.operands[-1] if "expect_tx" in instruction.marks else Number(0)
            barrier.arrive(int(cta.bits(expected, 4)[thread]))
        elif how != "try_wait":
            raise NotImplementedError("a barrier that is used otherwise")
    if truth is not None:
        _wait(cta, instruction, truth, at, active)
    if sum(each.phase for each in cta.arrivals.values()) != phases:
        cta.state[cta.state == WAITS_FOR_ARRIVALS] = RUNS  # to ask again


def _wait(cta: Cta, instruction: Instruction, truth: Any, at: Any, active: Any) -> None:
    """Copies arrive when somebody waits for them, no sooner."""
    parity = cta.bits(instruction.operands[2], 4)
    over = np.zeros(cta.threads, np.uint8)
    for place in np.unique(at[active]):
        barrier = cta.arrivals[int(place)]
        for tensor, coordinates, places in barrier.copies:
            cta.shared.arrive_from_unit(places, tensor.load(coordinates))
            barrier.take(places.size)
        barrier.copies = []
        mine = active & (at == place)
        over[mine] = [barrier.is_over(int(each)) for each in parity[mine]]
    cta.set_bits(truth, over, active)
    cta.state[active & (over == 0)] = WAITS_FOR_ARRIVALS


def copy_of_box(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``cp.async.bulk.tensor`` from a tensor to shared memory, started by single threads."""
    if not (instruction.marks[2] == "tensor" and instruction.kind == ARRIVES):
        raise NotImplementedError("a copy of this unit")
    to, source, barrier = instruction.operands
    assert isinstance(source, Address)
    starts, barriers = cta.addresses(to, 4), cta.addresses(barrier, 4)
    maps = cta.bits(source.base, 8)
    columns = [cta.numbers(each, "s32") for each in source.coordinates]
    for thread in np.flatnonzero(active):
        tensor = cta.launch.tensor_maps[int(maps[thread])]
        places = tensor.places(int(starts[thread]))
        cta.shared.send_to(places)
        coordinates = tuple(int(each[thread]) for each in reversed(columns))
        cta.arrivals[int(barriers[thread])].copies.append((tensor, coordinates, places))


def of_warpgroup(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``wgmma``."""
    how = instruction.marks[0]
    groups = active.reshape(-1, GROUP)
    if not (groups.all(1) == groups.any(1)).all():
        raise BadAccess("not all threads of a warpgroup take part")
    if how == "mma_async":
        _multiply(cta, instruction, active)
    elif how == "commit_group":
        cta.products.append(cta.open_product)
        cta.open_product = []
    elif how == "wait_group":
        pending = instruction.operands[0]
        assert isinstance(pending, Number)
        done = len(cta.products) - pending.bits
        for places in (places for group in cta.products[: max(done, 0)] for places in group):
            cta.shared.release(places)
        cta.products = cta.products[max(done, 0) :]
    elif how != "fence":
        raise NotImplementedError("an instruction of warpgroups")


def _multiply(cta: Cta, instruction: Instruction, active: Any) -> None:
    _, _, _, shape, out, left, right = instruction.marks
    if out != "f32" or left != right:
        raise NotImplementedError("a product of other types")
    to, a, b, scale_sums, sign_a, sign_b, *transposed = instruction.operands
    if (sign_a, sign_b) != (Number(1), Number(1)):
        raise NotImplementedError("a product that is subtracted")
    rows, columns = (int(each) for each in shape[len("m64n") :].split("k"))
    turned = [each == Number(1) for each in transposed]
    b_turned, a_turned = (turned or [False])[-1], (turned or [False])[0]
    groups = np.flatnonzero(active.reshape(-1, GROUP).all(1))
    if isinstance(a, Vector):
        lefts = registers_of([cta.bits(part, 4) for part in a.parts], left, columns)[groups]
    else:
        lefts = _matrices(cta, a, groups, (64, columns), left, is_transposed=a_turned)
    rights = _matrices(cta, b, groups, (rows, columns), right, is_transposed=b_turned)
    products = np.zeros((cta.threads // GROUP, 64, rows))
    products[groups] = lefts @ rights.transpose(0, 2, 1)
    assert isinstance(to, Vector)
    keeps = cta.bits(scale_sums, 1) != 0
    for index, part in enumerate(to.parts):
        found = result_of(products, index)
        if keeps.any():
            found = np.where(keeps, cta.numbers(part, "f32") + found, found)
        cta.set_bits(part, bits_of(found.astype(np.float32), "f32"), active)


def _matrices(
    cta: Cta, operand: Any, groups: Any, sizes: tuple[int, int], kind: str, *, is_transposed: bool
) -> Any:
    """Of each warpgroup the matrix in shared memory that a descriptor tells, ``[groups, rows,
    columns]``."""
    size, descriptors = FACTOR_BYTES[kind], cta.bits(operand, 8)
    found = []
    for group in groups:
        place = Place.of(int(descriptors[group * GROUP]))
        at = place.bytes_at(*sizes, size, is_transposed=is_transposed)
        places = at[..., None] + np.arange(size)
        content = cta.shared.load_by_unit(places)
        cta.open_product.append(places)
        bits = np.ascontiguousarray(content).view(UNSIGNED[size])[..., 0]
        numbers = factors_of(bits, kind)[0] if kind == "tf32" else typed(bits, kind)
        found.append(numbers.astype(np.float64))
    return np.stack(found)


def store_matrix(cta: Cta, instruction: Instruction, active: Any) -> None:
    """``stmatrix``: the reverse of ``ldmatrix``."""
    to, source = instruction.operands
    parts = source.parts if isinstance(source, Vector) else (source,)
    threads = np.arange(cta.threads)
    at = cta.addresses(to, 4)
    for matrix, part in enumerate(parts):
        bits = cta.bits(part, 4)
        own = np.ascontiguousarray(bits).view(np.uint16).reshape(-1, LANES, 2).reshape(-1, 8, 8)
        own = own.transpose(0, 2, 1) if "trans" in instruction.marks else own
        lanes = active & (threads % LANES // 8 == matrix)
        content = np.ascontiguousarray(own).reshape(-1, 8).view(np.uint8)
        taken = content.reshape(-1, 16)[active.reshape(-1, LANES).any(1).repeat(8)]
        cta.shared.store(at[lanes], taken, cta.warps[lanes])


STEPS: dict[str, Any] = {
    "elect": elect, "fence": fence, "mbarrier": barrier_of_arrivals, "wgmma": of_warpgroup,
    "stmatrix": store_matrix,
}  # fmt: skip
