"""Products of float32 matrices in bfloat16 where the CPU has tiles for them (AMX): four times as fast.

In: nothing; `use_tiles` changes torch for the whole process. Sums stay in float32, and so does everything
else. Attention is left out: torch's kernel for it works on blocks so small that tiles make it six times as
slow (2.13, backward pass).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
TILES, EXACT = "medium", "highest"  # torch's names for products in bfloat16 and in float32


def use_tiles() -> bool:
    """Let matrix products use tiles; False where the CPU has none."""
    if not torch.cpu._is_amx_tile_supported():
        return False
    torch.set_float32_matmul_precision(TILES)
    F.scaled_dot_product_attention = _attend
    return True


class _ExactAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d)) v with products in float32."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision(EXACT)
        out, sums = _FLASH(q, k, v)
        torch.set_float32_matmul_precision(TILES)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.set_float32_matmul_precision(EXACT)
        q, k, v, out, sums = ctx.saved_tensors
        found = _FLASH_BACKWARD(gradient, q, k, v, out, sums, 0.0, False)
        torch.set_float32_matmul_precision(TILES)
        return found


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0) -> torch.Tensor:
    if dropout_p:
        raise ValueError(f"dropout_p is {dropout_p}; the network has no dropout")
    return _ExactAttention.apply(q, k, v)
