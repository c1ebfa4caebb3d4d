"""Feature interactions that need more than a product with a weight matrix.

Shapes: B rows, I columns of the architecture's input, F embedded features, D their dim (feature f is in columns
[f D, (f + 1) D) of the input), H outputs of linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.kernels.interaction_kernels import factorization_backward, factorization_forward


def factorization(input_BI: Tensor, weight_F: Tensor, dim: int) -> Tensor:
    """Σ over pairs of features of w_f w_g x_f · x_g [B], in at least float32 (Rendle, ICDM 2010: w = 1)."""
    emb_BFD = input_BI[:, : len(weight_F) * dim].unflatten(1, (len(weight_F), dim))
    if emb_BFD.dtype in (torch.bfloat16, torch.float16):
        emb_BFD, weight_F = emb_BFD.float(), weight_F.float()
    scaled_BFD = emb_BFD * weight_F[:, None]
    term_B: Tensor = (scaled_BFD.sum(1).square() - scaled_BFD.square().sum(1)).sum(1) / 2
    return term_B


def linear_and_factorization(
    layers: Sequence[nn.Linear], input_BI: Tensor, weight_F: Tensor, dim: int
) -> tuple[Sequence[Tensor], Tensor]:
    """The output [B, H] of each layer, and `factorization`. On a CPU one autograd Function computes both.

    The Function owns the input's gradient of the layers, so that the kernel adds the term's gradient to it in place.
    """
    kernels = torch.is_grad_enabled() and not torch.onnx.is_in_onnx_export()  # ONNX can't trace into a numba kernel
    if not (kernels and input_BI.device.type == "cpu" and input_BI.dtype in _KERNEL_DTYPES):
        return [layer(input_BI) for layer in layers], factorization(input_BI, weight_F, dim)
    # One product for all layers reads the input once.
    weight_HI = torch.cat([layer.weight for layer in layers])
    bias_H = torch.cat([layer.bias for layer in layers])
    output_BH, term_B = _LinearAndFactorization.apply(input_BI, weight_HI, bias_H, weight_F, dim)
    return output_BH.split([layer.out_features for layer in layers], 1), term_B


_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


class _LinearAndFactorization(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes arguments by position)
        ctx: Any, input_BI: Tensor, weight_HI: Tensor, bias_H: Tensor, weight_F: Tensor, dim: int
    ) -> Any:
        input_BI = input_BI.contiguous()  # the kernels read it by address
        sum_BD, term_B = torch.empty(len(input_BI), dim), torch.empty(len(input_BI))
        forward = factorization_forward(dim, input_BI.dtype == torch.bfloat16)
        forward(_bits(input_BI), weight_F.detach().float().numpy(), sum_BD.numpy(), term_B.numpy())
        ctx.save_for_backward(input_BI, weight_HI, weight_F, sum_BD)
        return torch.addmm(bias_H, input_BI, weight_HI.t()), term_B

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor, slope_B: Tensor) -> Any:
        input_BI, weight_HI, weight_F, sum_BD = ctx.saved_tensors
        gradient_BI = gradient_BH @ weight_HI
        gradient_FD = torch.zeros(len(weight_F), sum_BD.shape[1])
        backward = factorization_backward(sum_BD.shape[1], input_BI.dtype == torch.bfloat16)
        backward(
            _bits(input_BI), weight_F.float().numpy(), sum_BD.numpy(), slope_B.contiguous().numpy(),
            _bits(gradient_BI), gradient_FD.numpy(),
        )  # fmt: skip
        gradient_HI, gradient_H = gradient_BH.t() @ input_BI, gradient_BH.sum(0)
        return gradient_BI, gradient_HI, gradient_H, gradient_FD.sum(1).to(weight_F.dtype), None


def _bits(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
