"""Single instructions against what the PTX ISA says of them, and texts that are read."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from tests.emulated import threads
from tests.emulated.arithmetic import computed
from tests.emulated.assembly import Address, Number, Register, Symbol, Vector, parse
from tests.emulated.instructions import step_of
from tests.emulated.matrix_unit import Place
from tests.emulated.memory import NOBODY, BadAccess, Copies, Copy, Shared, Tensors
from tests.emulated.tensor_maps import Arrivals
from tests.emulated.threads import Cta, Launch
from tests.emulated.values import bits_of, bytes_of, typed, widened
from tests.emulated.warps import shuffled

KERNEL = """
.version 8.7
.target sm_80
.visible .entry one(.param .u64 .ptr .global .align 1 one_param_0, .param .u32 one_param_1,
  .param .align 64 .b8 one_param_2[128])
.reqntid 128
{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	.loc 1 2 3
"""
TINY = 1e-41
"""Of float32, below its normal numbers."""


def read(line: str):
    return parse(KERNEL + line + "\n}\n").instructions[-1]


def float_bits(number: float) -> int:
    return struct.unpack("<I", struct.pack("<f", number))[0]


F = float_bits
COMPUTED = {
    "add.s32 %r1, %r2, %r3": ([0x7FFFFFFF, 1], 0x80000000),
    "mul.hi.u32 %r1, %r2, %r3": ([0xFFFFFFFF, 0xFFFFFFFF], 0xFFFFFFFE),
    "mul.wide.s32 %rd1, %r2, %r3": ([0xFFFFFFFF, 3], 0xFFFFFFFFFFFFFFFD),
    "mad.wide.u32 %rd1, %r2, %r3, %rd4": ([0xFFFFFFFF, 2, 5], 0x200000003),
    "div.s32 %r1, %r2, %r3": ([0xFFFFFFF9, 2], 0xFFFFFFFD),
    "rem.s32 %r1, %r2, %r3": ([0xFFFFFFF9, 2], 0xFFFFFFFF),
    "shr.s32 %r1, %r2, %r3": ([0x80000000, 40], 0xFFFFFFFF),
    "shr.u32 %r1, %r2, %r3 ": ([0x80000000, 40], 0),
    "shl.b32 %r1, %r2, %r3": ([3, 32], 0),
    "bfe.u32 %r1, %r2, %r3, %r4": ([0xABCD, 4, 8], 0xBC),
    "bfe.s32 %r1, %r2, %r3, %r4": ([0x20, 5, 1], 0xFFFFFFFF),
    "bfi.b32 %r1, %r2, %r3, %r4, %r5": ([0xF, 0, 8, 2], 0x300),
    "prmt.b32 %r1, %r2, %r3, %r4": ([0x03020180, 0x07060504, 0x8074], 0xFF800704),
    "lop3.b32 %r1, %r2, %r3, %r4, %r5": ([0b1100, 0b1010, 0b1111, 0x28], 0b0110),
    "shf.l.wrap.b32 %r1, %r2, %r3, %r4": ([0x80000000, 1, 33], 3),
    "popc.b32 %r1, %r2": ([0xF0F0], 8),
    "clz.b32 %r1, %r2": ([1], 31),
    "max.f32 %r1, %r2, %r3": ([F(math.nan), F(2.0)], F(2.0)),
    "min.NaN.f32 %r1, %r2, %r3": ([F(math.nan), F(2.0)], F(math.nan)),
    "setp.ne.f32 %p1, %r2, %r3": ([F(math.nan), F(2.0)], 0),
    "setp.neu.f32 %p1, %r2, %r3": ([F(math.nan), F(2.0)], 1),
    "setp.lt.and.s32 %p1, %r2, %r3, %p4": ([0xFFFFFFFF, 0, 1], 1),
    "fma.rn.f32 %r1, %r2, %r3, %r4": (
        [F(1 + 2**-12), F(1 + 2**-12), F(-1 - 2**-11)], F(2.0**-24),
    ),
    "mul.ftz.f32 %r1, %r2, %r3": ([F(TINY), F(1.0)], 0),
    "add.f32 %r1, %r2, %r3": ([F(TINY), F(0.0)], F(TINY)),
    "cvt.rzi.s32.f32 %r1, %r2": ([F(-1e20)], 0x80000000),
    "cvt.rzi.u32.f32 %r1, %r2": ([F(math.nan)], 0),
    "cvt.rni.s32.f32 %r1, %r2": ([F(2.5)], 2),
    "cvt.rn.bf16x2.f32 %r1, %r2, %r3": ([F(1.0), F(-2.0)], 0x3F80C000),
    "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r2, %r3": ([F(1000.0), F(1.0)], 0x7E38),
    "cvt.rna.tf32.f32 %r1, %r2": ([0x3F801000], 0x3F802000),
    "cvt.f32.bf16 %r1, %rs2": ([0xC000], F(-2.0)),
    "cvt.s64.s32 %rd1, %r2": ([0xFFFFFFFF], 0xFFFFFFFFFFFFFFFF),
    "selp.b32 %r1, %r2, %r3, %p4": ([5, 6, 0], 6),
}  # fmt: skip
"""An instruction, the bits of its sources, and those of its result."""


@pytest.mark.parametrize("line", COMPUTED)
def test_an_instruction_computes_what_the_isa_says(line):
    given, wanted = COMPUTED[line]
    found = computed(read(line.strip()))
    assert found is not None
    kinds, result, function = found
    wide = (np.full(3, bits, np.uint64) for bits in given)
    operands = (
        typed(widened(bits, bytes_of(kind)), kind) for bits, kind in zip(wide, kinds, strict=False)
    )
    with np.errstate(all="ignore"):
        bits = bits_of(function(*operands), result)
    assert [hex(each) for each in bits.tolist()] == [hex(wanted)] * 3


def test_a_text_is_read():
    kernel = parse(
        KERNEL
        + "$L__BB0_1:\n	@!%p3 ld.global.L1::evict_last.v2.b32 { %r1, _ }, [ %rd2 + -16 ];\n"
        "{ .reg .b32 tmp; mov.b64 {tmp, %r4}, %rd5; }\n{\n	.reg .pred complete;\n	wait:\n"
        "	@!complete bra.uni wait;\n}\n	mov.f32 %r1, 0f3F800000;\n{\n	wait:\n	bra wait;\n}\n"
        "	@%p1 bra $L__BB0_1;\n	ret;\n}\n.section .debug { }"
    )
    load, halves, first, one, second, back, end = kernel.instructions
    assert (kernel.name, kernel.threads, end.op) == ("one", 128, "ret")
    assert [size for _, size in kernel.parameters] == [8, 4, 128]
    assert (load.guard, load.negated, load.kind) == ("%p3", True, "b32")
    assert load.operands == (
        Vector((Register("%r1"), Register("_"))),
        Address(Register("%rd2"), -16),
    )
    assert halves.operands[0] == Vector((Register("tmp"), Register("%r4")))
    assert one.operands[1] == Number(0x3F800000, 4)
    labels = [kernel.labels[each.operands[0].name] for each in (first, second, back)]
    assert labels == [2, 4, 0]
    assert first.guard == "complete"
    assert back.operands == (Symbol("$L__BB0_1"),)


def ran(body: str) -> Cta:
    """What 128 threads hold after a kernel that is given nothing."""
    kernel = parse(KERNEL + body + "	ret;\n}\n")
    steps = [step_of(each) for each in kernel.instructions]
    cta = Cta(Launch(kernel, steps, (1, 1, 1), 64, Tensors(()), {}, {}), (0, 0, 0))
    cta.run()
    return cta


def test_threads_part_and_meet_again():
    cta = ran("""
        mov.u32 %r1, %tid.x;
        setp.lt.s32 %p1|%p2, %r1, 5;
        mov.b32 %r2, 0;
        @%p2 bra $L__AWAY;
        add.s32 %r2, %r2, 7;
        @%p1 bra $L__HERE;
    $L__AWAY:
        add.s32 %r2, %r2, 9;
    $L__HERE:
        bar.sync 0;
        @%p1 add.s32 %r2, %r2, %r1;
    """)
    assert cta.registers["%r2"].tolist() == [*range(7, 12), *[9] * 123]
    assert cta.registers["%p2"].tolist() == [0] * 5 + [1] * 123


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("mov.b64 %rd1, 16; ld.global.b32 %r1, [%rd1];", "outside every tensor"),
        ("mov.b64 %rd1, 2; ld.global.b32 %r1, [%rd1];", "no multiple"),
        ("mov.b32 %r1, 64; st.shared.b32 [%r1], %r1;", "64 bytes"),
        ("mov.u32 %r1, %tid.x; mov.b32 %r2, 0; st.shared.b32 [%r2], %r1;", "other bytes"),
        ("$L__A: bra $L__A;", "no end"),
        ("mov.b32 %r1, 0; mbarrier.init.shared::cta.b64 [%r1], 200;"
         " mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0;", "never arrives"),
    ],
)  # fmt: skip
def test_what_no_kernel_may_do_is_told(body: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "MOST_INSTRUCTIONS", 100)
    with pytest.raises(BadAccess, match=said):
        ran(body.replace(";", ";\n"))


def test_an_instruction_that_is_not_known_is_named():
    with pytest.raises(NotImplementedError, match=r"vote\.sync"):
        ran("vote.sync.any.pred %p1, %p2, -1;")


def test_shared_memory_that_warps_do_not_wait_for_is_told():
    shared, at, one, two = Shared(64), np.array([0]), np.array([0]), np.array([1])
    shared.store(at, np.array([[1, 2, 3, 4]], np.uint8), one)
    assert shared.load(at, 4, one).tolist() == [[1, 2, 3, 4]]
    with pytest.raises(BadAccess, match="reads shared memory that another wrote"):
        shared.load(at, 4, two)
    shared.barrier()
    shared.load(at, 4, one)
    shared.load(at, 4, two)
    with pytest.raises(BadAccess, match="writes shared memory that another uses"):
        shared.store(at, np.zeros((1, 4), np.uint8), one)
    shared.barrier()
    shared.store(at, np.zeros((1, 4), np.uint8), two)
    with pytest.raises(BadAccess, match="no fence"):
        shared.load_by_unit(at[:, None])
    shared.show(two)
    shared.load_by_unit(at[:, None])
    shared.barrier()
    with pytest.raises(BadAccess, match="nobody waited for"):
        shared.store(at, np.zeros((1, 4), np.uint8), two)
    with pytest.raises(BadAccess, match="no multiple"):
        shared.load(np.array([2]), 4, one)
    with pytest.raises(BadAccess, match="64 bytes"):
        shared.load(np.array([64]), 4, one)
    assert (shared.writer == NOBODY).all()


def test_a_thread_waits_for_all_groups_of_copies_but_the_last():
    copies, empty = Copies(), np.zeros(0)
    for size in (1, 2, 3):
        copies.add(Copy(empty, empty, size, empty, empty))
        copies.commit()
    assert [copy.size for copy in copies.wait(1)] == [1, 2]
    assert [copy.size for copy in copies.wait(0)] == [3]


def test_a_phase_ends_when_all_have_arrived_and_all_bytes():
    barrier = Arrivals(2)
    barrier.arrive(expected=8)
    barrier.arrive()
    assert not barrier.is_over(0)
    barrier.take(8)
    assert barrier.is_over(0)
    assert not barrier.is_over(1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("code", [1, 2, 3])
def test_no_two_numbers_of_a_matrix_lie_in_one_place(code: int, turned: bool):
    place = Place.of(code << 62 | 64 << 32 | 512 << 16 | 8)
    places = place.bytes_at(64, 16, 2, is_transposed=turned)
    assert places.shape == (64, 16)
    assert len(np.unique(places)) == places.size
    assert not (places % 2).any()


def test_a_shuffle_takes_from_the_lane_that_it_names():
    lanes, all_of_them = np.arange(32, dtype=np.uint32), np.ones(32, bool)
    whole = np.full(32, 31, np.uint32)
    found, _ = shuffled("bfly", lanes, np.full(32, 4, np.uint32), whole, all_of_them)
    assert found.tolist() == [lane ^ 4 for lane in range(32)]
    found, inside = shuffled("up", lanes, np.full(32, 1, np.uint32), 0 * whole, all_of_them)
    assert found.tolist() == [0, *range(31)]
    assert inside.tolist() == [False] + [True] * 31
