"""Linear layers as models spell them, and what is read of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

ROWS, WIDE, INNER = 3, 48, 80


def weight(*shape, device="cpu", dtype=torch.float32):
    return torch.randn(*shape, device=device, dtype=dtype)


def linear(x, w, b):
    return F.linear(x, w, b)


def plain(x, w):
    return x @ w


def mlp(x, gate, up, down):
    return x + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def up_first(x, gate, up, down):
    wide = F.linear(x, up)
    return x + F.linear(wide * F.silu(F.linear(x, gate)), down)


def conv1d(x, w, b, v):
    """GPT-2's: weights [k, n]."""
    return F.gelu(torch.addmm(b, x.view(-1, x.shape[-1]), w), approximate="tanh") @ v


def read_twice(x, w):
    y = F.linear(x, w)
    return F.silu(y), y


def normed(x, w):
    y = F.linear(x, w)
    return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)


def qkv(x, q, k, v, b):
    """Of grouped heads: two of the three have fewer columns."""
    return F.linear(x, q, b), F.linear(x, k, b[: len(k)]), F.linear(x, v, b[: len(v)])


def packed_qkv(x, w):
    """Of one parameter, of which each takes some rows."""
    return F.linear(x, w[:INNER]), F.linear(x, w[INNER : INNER + 16]), F.linear(x, w[-16:])


def turned(x, w):
    """Of heads side by side, which matmul copies before it multiplies them in batches."""
    return x.transpose(1, 2) @ w


def einsum(x, w):
    return torch.einsum("bsk,nk->bsn", x, w)


def spread(x, w):
    """A weight that batches share."""
    return torch.bmm(x, w[None].expand(len(x), -1, -1)).relu()


def rows_apart(x, w):
    """Of sequences side by side, which matmul multiplies where they are."""
    return x.transpose(0, 1) @ w


def qkv_and_more(x, q, k, v, w):
    return F.linear(x, q).sin(), F.linear(x, k), F.linear(x.cos(), w), F.linear(x, v)


def rms_norm(x, g):
    """As Llama spells it."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return g * wide.to(x.dtype)


def gemma_norm(x, g):
    """As Gemma spells it: gains are held less one."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * (1.0 + g.float())).type_as(x)


def normed_gemma(x, g, gate, up):
    """Whose gain is that of another norm, too."""
    y = gemma_norm(x, g)
    return gemma_norm(x + 1, g), F.silu(F.linear(y, gate)) * F.linear(y, up)


def normed_mlp(x, g, gate, up):
    y = rms_norm(x, g)
    return x, F.silu(F.linear(y, gate)) * F.linear(y, up)


def normed_qkv(x, g, q, k, v):
    y = F.rms_norm(x, x.shape[-1:], g, 1e-6)
    return x + 1, F.linear(y, q), F.linear(y, k), F.linear(y, v)


def normed_half(x, w):
    """Without a gain nothing can overflow before the root divides."""
    return F.linear(F.rms_norm(x, x.shape[-1:]), w)


def normed_half_gain(x, g, w):
    """With one it can: the graph norms."""
    return F.linear(rms_norm(x, g), w)


def norm_read_twice(x, g, w):
    y = rms_norm(x, g)
    return y, F.linear(y, w)


def three(x, q, k, v):
    return F.linear(x, q) * F.linear(x, k) * F.linear(x, v)


def cast(x, w):
    return F.relu(F.linear(x, w).float())


def int8(x, w, scale):
    """As torchao spells a weight of int8 with a scale a column."""
    return (x @ w.t().to(x.dtype)) * scale


def int8_scale_cast(x, w, scale):
    """... that is held in float32."""
    return (x @ w.t().to(x.dtype)) * scale.to(x.dtype)


def scale_cast_read_twice(x, w, scale):
    """A cast that is made anyway stays where it is."""
    narrow = scale.to(x.dtype)
    return (x @ w.t().to(x.dtype)) * narrow, narrow + 1


def int8_scaled(x, w, scale):
    """As torchao does where it dequantises: a scale for each column."""
    return F.linear(x, (w.to(torch.float32) * scale[:, None]).to(x.dtype))


def int8_groups(x, w, scale):
    groups = w.view(len(w), -1, 16).to(x.dtype) * scale.view(len(w), -1, 1)
    return F.linear(x, groups.view(w.shape))


def int8_zeros(x, w, scale, zero):
    """As torchao dequantises groups, of which it always says zero points."""
    groups = (w.view(len(w), -1, 16).to(x.dtype) - zero.view(len(w), -1, 1).to(x.dtype)) * (
        scale.view(len(w), -1, 1)
    )
    return F.linear(x, groups.view(w.shape).to(x.dtype))


def int8_zeros_up(x, gate, up, scale, zero):
    """... and columns."""
    wide = [(w.to(x.dtype) - zero.to(x.dtype)) * scale for w in (gate, up)]
    return F.silu(F.linear(x, wide[0])) * F.linear(x, wide[1])


def uint8_zeros(x, w, scale, zero):
    """As torchao's affine quantisation does, in int32."""
    groups = w.view(len(w), -1, 16).to(torch.int32) - zero.view(len(w), -1, 1).to(torch.int32)
    wide = groups.to(x.dtype) * scale.view(len(w), -1, 1)
    return F.linear(x, wide.view(w.shape))


def uint8_floating_zeros(x, w, scale, zero):
    """As HQQ: zero points are no whole numbers."""
    groups = (w.view(len(w), -1, 16).to(x.dtype) - zero.view(len(w), -1, 1)) * (
        scale.view(len(w), -1, 1)
    )
    return F.linear(x, groups.view(w.shape))


def fp8_repeated(x, w, scale):
    """As torchao dequantises groups of fp8."""
    wide = w.to(torch.float32) * scale.repeat_interleave(16, dim=-1)
    return F.linear(x, wide.to(x.dtype))


def fp8_repeated_both(x, w, scale):
    """As it does blocks, of which several columns share a scale: the graph multiplies them."""
    wide = w.to(torch.float32) * scale.repeat_interleave(16, dim=0).repeat_interleave(16, dim=1)
    return F.linear(x, wide.to(x.dtype))


def int8_wide_scale(x, w, scale):
    """As torchao spells columns of int8: it holds the scales in float32."""
    return (x @ w.t().to(x.dtype)) * scale.to(x.dtype).view(-1)


def fp8_turned(x, w, scale):
    """As torchao dequantises columns of fp8: it turns weight and scales first."""
    return x @ (w.t().to(torch.float32) * scale.t()).to(x.dtype)


def fp8_turned_repeated(x, w, scale):
    """... and groups."""
    wide = w.t().to(torch.float32) * scale.t().repeat_interleave(16, dim=0)
    return x @ wide.to(x.dtype)


def int8_up(x, gate, up, scale):
    """Two weights that are scaled alike."""
    wide = [(w.to(x.dtype) * scale[:, None]) for w in (gate, up)]
    return F.silu(F.linear(x, wide[0])) * F.linear(x, wide[1])


def fp8_scaled(x, w, scale):
    return F.linear(x, w.to(x.dtype) * scale)


def int8_linear(x, w, scale):
    """As gpt-fast does."""
    return F.linear(x, w.to(x.dtype)) * scale


def mlp_inputs(device="cpu", dtype=torch.float32, shape=(1, ROWS)):
    x = weight(*shape, WIDE, device=device, dtype=dtype)
    weights = [weight(INNER, WIDE, device=device, dtype=dtype) for _ in range(2)]
    return (x, *weights, weight(WIDE, INNER, device=device, dtype=dtype))


def bf16(*shape):
    return weight(*shape, device="meta", dtype=torch.bfloat16)


def bytes8(*shape):
    return torch.empty(*shape, dtype=torch.int8, device="meta")


READ = {
    "linear": (linear, (bf16(1, ROWS, WIDE), bf16(INNER, WIDE), bf16(INNER)), [(1, "")]),
    "plain": (plain, (bf16(ROWS, WIDE), bf16(WIDE, INNER)), [(1, "")]),
    "mlp": (mlp, mlp_inputs("meta", torch.bfloat16), [(2, "mul"), (1, "add")]),
    "up_first": (up_first, mlp_inputs("meta", torch.bfloat16), [(2, "mul"), (1, "add")]),
    "conv1d": (conv1d, (bf16(1, ROWS, WIDE), bf16(WIDE, INNER), bf16(INNER), bf16(INNER, 8)),
               [(1, "convert_element_type"), (1, "")]),
    "read_twice": (read_twice, (bf16(ROWS, WIDE), bf16(INNER, WIDE)), [(1, "")]),
    "normed": (normed, (bf16(ROWS, WIDE), bf16(INNER, WIDE)), [(1, "")]),
    "three": (three, (bf16(ROWS, WIDE), *(bf16(INNER, WIDE) for _ in range(3))),
              [(2, "mul"), (1, "mul")]),
    "int8": (int8, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER)), [(1, "mul")]),
    "int8_scale_cast": (int8_scale_cast,
                        (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER).float()),
                        [(1, "mul")]),
    "scale_cast_read_twice": (scale_cast_read_twice,
                              (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER).float()),
                              [(1, "mul")]),
    "int8_linear": (int8_linear, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER)),
                    [(1, "mul")]),
    "int8_scaled": (int8_scaled, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER)), [(1, "")]),
    "int8_groups": (int8_groups, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER, WIDE // 16)),
                    [(1, "")]),
    "int8_up": (int8_up, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bytes8(INNER, WIDE), bf16(INNER)),
                [(2, "mul")]),
    "fp8_scaled": (fp8_scaled, (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.float8_e4m3fn),
                                bf16(())), [(1, "")]),
    "int8_zeros": (int8_zeros, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bf16(INNER, WIDE // 16),
                                bytes8(INNER, WIDE // 16)), [(1, "")]),
    "int8_zeros_wide_scale": (int8_zeros, (bf16(ROWS, WIDE), bytes8(INNER, WIDE),
                                           bf16(INNER, WIDE // 16).float(),
                                           bytes8(INNER, WIDE // 16)), [(1, "")]),
    "int8_wide_scale": (int8_wide_scale, (bf16(ROWS, WIDE), bytes8(INNER, WIDE),
                                          bf16(INNER, 1).float()), [(1, "mul")]),
    "fp8_turned": (fp8_turned, (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.float8_e4m3fn),
                                bf16(INNER, 1).float()), [(1, "")]),
    "fp8_turned_repeated": (fp8_turned_repeated,
                            (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.float8_e4m3fn),
                             bf16(INNER, WIDE // 16).float()), [(1, "")]),
    "int8_zeros_up": (int8_zeros_up, (bf16(ROWS, WIDE), bytes8(INNER, WIDE), bytes8(INNER, WIDE),
                                      bf16(INNER, 1), bytes8(INNER, 1)), [(2, "mul")]),
    "uint8_zeros": (uint8_zeros, (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.uint8),
                                  bf16(INNER, WIDE // 16),
                                  bytes8(INNER, WIDE // 16).to(torch.uint8)), [(1, "")]),
    "uint8_floating_zeros": (uint8_floating_zeros,
                             (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.uint8),
                              bf16(INNER, WIDE // 16), bf16(INNER, WIDE // 16)), [(1, "")]),
    "fp8_repeated": (fp8_repeated, (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.float8_e4m3fn),
                                    bf16(INNER, WIDE // 16).float()), [(1, "")]),
    "fp8_repeated_both": (fp8_repeated_both,
                          (bf16(ROWS, WIDE), bytes8(INNER, WIDE).to(torch.float8_e4m3fn),
                           bf16(INNER // 16, WIDE // 16).float()), [(1, "")]),
    "qkv": (qkv, (bf16(1, ROWS, WIDE), bf16(INNER, WIDE), bf16(16, WIDE), bf16(16, WIDE),
                  bf16(INNER)), [(1, "")]),
    "qkv_and_more": (qkv_and_more, (bf16(ROWS, WIDE), bf16(INNER, WIDE), bf16(16, WIDE),
                                    bf16(16, WIDE), bf16(8, WIDE)), [(1, "sin"), (1, ""), (1, "")]),
    "packed_qkv": (packed_qkv, (bf16(1, ROWS, WIDE), bf16(INNER + 32, WIDE)), [(1, "")]),
    "turned": (turned, (bf16(2, ROWS, 4, WIDE), bf16(WIDE, INNER)), [(1, "")]),
    "rows_of_one": (rows_apart, (bf16(ROWS, 1, WIDE), bf16(WIDE, INNER)), [(1, "")]),
    "einsum": (einsum, (bf16(2, ROWS, WIDE), bf16(INNER, WIDE)), [(1, "")]),
    "spread": (spread, (bf16(2, ROWS, WIDE), bf16(WIDE, INNER)), [(1, "relu")]),
    "normed_mlp": (normed_mlp, (bf16(4, 1, WIDE), bf16(WIDE), bf16(INNER, WIDE),
                                bf16(INNER, WIDE)), [(2, "mul")]),
    "normed_qkv": (normed_qkv, (bf16(1, 1, WIDE), bf16(WIDE), bf16(INNER, WIDE), bf16(16, WIDE),
                                bf16(16, WIDE)), [(1, "")]),
    "normed_gemma": (normed_gemma, (bf16(4, WIDE), bf16(WIDE), bf16(INNER, WIDE),
                                    bf16(INNER, WIDE)), [(2, "mul")]),
    "normed_half": (normed_half, (bf16(4, WIDE).half(), bf16(INNER, WIDE).half()), [(1, "")]),
    "normed_half_gain": (normed_half_gain, (bf16(4, WIDE).half(), bf16(WIDE).half(),
                                            bf16(INNER, WIDE).half()), [(1, "")]),
    "norm_read_twice": (norm_read_twice, (bf16(4, WIDE), bf16(WIDE), bf16(INNER, WIDE)),
                        [(1, "")]),
    "cast": (cast, (bf16(ROWS, WIDE), bf16(INNER, WIDE)), None),
}  # fmt: skip
"""A function, its inputs, and of each site how many weights it has and what comes last."""
