# SPDX-License-Identifier: Apache-2.0
"""The custom op torch.ops.mixgemm.linear: its schema, its kernel, its fake kernel, its gradient;
and torch.ops.mixgemm.dequantize, which the gradient needs.

A packed weight is three tensors here, so that PyTorch moves, saves and keeps them like any others:

    codes   uint8 [ceil(N/16), ceil(K/64), 128 * bits]
    scales  float16 or bfloat16 [ceil(N/16), G, 16]
    zeros   None; uint8 (integer, on the CPU) or the scales' dtype (else), of the scales' shape

and a fourth where columns are permuted (checkpoints quantized in activation order):

    permutation  None; int32 [K]: column j of the codes multiplies column permutation[j] of x
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from .. import _core, _frameworks
from .._errors import InvalidArgumentError

_library = torch.library.Library("mixgemm", "DEF")
_library.define(
    "linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? bias, Tensor? residual, "
    "int n, int group_size, str zero, str epilogue, float alpha, bool pdl, "
    "Tensor? permutation=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))

_library.define(
    "dequantize(Tensor codes, Tensor scales, Tensor? zeros, int n, int k, int group_size, str zero, "
    "Tensor? permutation=None) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_NO_TENSOR = (0, 0)
# The address of the current stream, without the objects around it.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (
    lambda index: torch.cuda.current_stream(index).cuda_stream)


def _pointer(tensor: torch.Tensor | None) -> tuple[int, int]:
    if tensor is None:
        return _NO_TENSOR
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _refuse(message: str) -> None:
    raise InvalidArgumentError(message)


def check_operands(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor,
                   zeros: torch.Tensor | None, bias: torch.Tensor | None,
                   residual: torch.Tensor | None, n: int, zero: str,
                   permutation: torch.Tensor | None = None) -> None:
    """The rules of the op that shapes, dtypes and devices can break; for fake tensors too."""
    k = x.shape[-1] if x.dim() else 0
    if scales.dtype not in _DTYPES:
        _refuse(f"scales must be float16 or bfloat16; got {scales.dtype}")
    if x.dtype != scales.dtype:
        _refuse(f"x must have the dtype of the weight's scales, {scales.dtype}; got {x.dtype}")
    if codes.dtype != torch.uint8 or codes.dim() != 3 or codes.shape[2] not in (512, 1024):
        _refuse("codes must be uint8 [N/16, K/64, 128 * bits]; got "
                f"{codes.dtype} {tuple(codes.shape)}")
    if n < 1 or codes.shape[0] != (n + 15) // 16:
        _refuse(f"codes must have {(n + 15) // 16} strips of 16 for N = {n}; got {codes.shape[0]}")
    if x.dim() < 1 or codes.shape[1] != (k + 63) // 64:
        _refuse(f"x must have shape [..., K] with the weight's K, {codes.shape[1]} blocks of 64; "
                f"got {tuple(x.shape)}")
    if scales.dim() != 3 or scales.shape[0] != codes.shape[0] or scales.shape[2] != 16:
        _refuse(f"scales must be [{codes.shape[0]}, G, 16]; got {tuple(scales.shape)}")
    if (zeros is None) != (zero == "none"):
        _refuse(f'zeros must be {"None" if zero == "none" else "given"} where zero is "{zero}"')
    if zeros is not None:
        on_cpu = zeros.device.type == "cpu"
        expected = torch.uint8 if zero == "integer" and on_cpu else scales.dtype
        if zeros.dtype != expected or zeros.shape != scales.shape:
            _refuse(f"zeros must be {expected} {tuple(scales.shape)}; got "
                    f"{zeros.dtype} {tuple(zeros.shape)}")
    if permutation is not None and (permutation.dtype != torch.int32
                                    or tuple(permutation.shape) != (k,)):
        _refuse(f"permutation must be int32 ({k},); got {permutation.dtype} "
                f"{tuple(permutation.shape)}")
    for name, tensor in (("codes", codes), ("scales", scales), ("zeros", zeros), ("bias", bias),
                         ("residual", residual), ("permutation", permutation)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            _refuse(f"{name} must be where x is, on {x.device}; got {tensor.device}")
        if name in ("bias", "residual") and tensor.dtype != x.dtype:
            _refuse(f"{name} must have x's dtype {x.dtype}; got {tensor.dtype}")
        if name in ("codes", "scales", "zeros", "permutation") and not tensor.is_contiguous():
            _refuse(f"{name} must be contiguous")
    if bias is not None and tuple(bias.shape) != (n,):
        _refuse(f"bias must have shape ({n},); got {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != (*x.shape[:-1], n):
        _refuse(f"residual must have shape {(*x.shape[:-1], n)}; got {tuple(residual.shape)}")


def bind(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None,
         bias: torch.Tensor | None, n: int, k: int, group_size: int, zero: str, epilogue: str,
         pdl: bool, permutation: torch.Tensor | None = None) -> _core.BoundWeight:
    """A weight bound by address; the tensors must outlive it."""
    device = codes.device
    return _core.BoundWeight(
        n, k, codes.shape[2] // 128, group_size, zero, _DTYPES[scales.dtype], epilogue,
        device.type == "cuda", device.index or 0, _pointer(codes), _pointer(scales),
        _pointer(zeros), _pointer(permutation), _pointer(bias), pdl)


def hold(weight: _core.BoundWeight, buffers: dict[str, torch.Tensor | None],
         scales: torch.Tensor) -> None:
    """Lets `weight.forward` multiply by itself, as long as a module's buffers stay what they are."""
    empty, scratch, kept = _frameworks.torch_memory(scales.device)
    weight.hold(buffers, empty, scales.dtype, scratch, kept)


def run(weight: _core.BoundWeight, x: torch.Tensor, k: int, n: int, residual: torch.Tensor | None,
        alpha: float) -> torch.Tensor:
    """One product, enqueued on the current stream; empty batches too. x is copied where its rows
    aren't contiguous. Every line of this is paid by each eager call. Scratch memory is asked for each
    time: what torch.compile makes of the op may record its allocations."""
    shape = x.shape
    y = x.new_empty((shape[0], n) if len(shape) == 2 else (*shape[:-1], n))
    m = y.numel() // n
    if m == 0:
        return y
    ldx = k
    if not x.is_contiguous():
        if len(shape) == 2 and x.stride(1) == 1 and x.stride(0) >= k:
            ldx = x.stride(0)
        else:
            x = x.contiguous()
    residual_address = 0
    if residual is not None:
        residual = residual.contiguous()
        residual_address = residual.data_ptr()
    if x.is_cuda:
        index = x.get_device()
        weight.run(x.data_ptr(), m, ldx, y.data_ptr(), residual_address, alpha, _raw_stream(index),
                   _frameworks.torch_scratch(index))
    else:
        weight.run(x.data_ptr(), m, ldx, y.data_ptr(), residual_address, alpha, 0, None)
    return y


def _linear(x, codes, scales, zeros, bias, residual, n, group_size, zero, epilogue, alpha, pdl,
            permutation=None):
    check_operands(x, codes, scales, zeros, bias, residual, n, zero, permutation)
    bias = None if bias is None else bias.contiguous()
    k = x.shape[-1]
    weight = bind(codes, scales, zeros, bias, n, k, group_size, zero, epilogue, pdl,
                  permutation)
    return run(weight, x, k, n, residual, alpha)


def _linear_fake(x, codes, scales, zeros, bias, residual, n, group_size, zero, epilogue, alpha,
                 pdl, permutation=None):
    check_operands(x, codes, scales, zeros, bias, residual, n, zero, permutation)
    return x.new_empty((*x.shape[:-1], n))


_library.impl("linear", _linear, "CPU")
_library.impl("linear", _linear, "CUDA")
torch.library.register_fake("mixgemm::linear", _linear_fake, lib=_library)


def _dequantize(codes, scales, zeros, n, k, group_size, zero, permutation=None):
    device = codes.device
    codes, scales = codes.cpu(), scales.cpu()
    if zeros is not None:
        zeros = zeros.cpu().to(torch.uint8 if zero == "integer" else scales.dtype)
    if permutation is not None:
        permutation = permutation.cpu()
    weight = bind(codes, scales, zeros, None, n, k, group_size, zero, "none", False, permutation)
    return torch.from_numpy(weight.dequantize()).to(device, scales.dtype)


def _dequantize_fake(codes, scales, zeros, n, k, group_size, zero, permutation=None):
    return scales.new_empty((n, k))


_library.impl("dequantize", _dequantize, "CPU")
_library.impl("dequantize", _dequantize, "CUDA")
torch.library.register_fake("mixgemm::dequantize", _dequantize_fake, lib=_library)


def _setup_context(ctx, inputs, output):
    (x, codes, scales, zeros, bias, residual, n, group_size, zero, epilogue, alpha, pdl,
     permutation) = inputs
    ctx.save_for_backward(codes, scales, zeros, permutation)
    ctx.weight_of = (n, x.shape[-1], group_size, zero)
    ctx.epilogue, ctx.alpha, ctx.has_residual = epilogue, alpha, residual is not None


def _backward(ctx, grad):
    if ctx.epilogue != "none":
        raise NotImplementedError(f'mixgemm: no gradient through the epilogue "{ctx.epilogue}"; '
                                  "apply the activation in PyTorch to train through it")
    if ctx.needs_input_grad[4]:
        raise NotImplementedError("mixgemm: no gradient for bias; only x and residual have one")
    codes, scales, zeros, permutation = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = grad.matmul(torch.ops.mixgemm.dequantize(codes, scales, zeros, *ctx.weight_of,
                                                          permutation))
        grad_x = grad_x * ctx.alpha if ctx.alpha != 1.0 else grad_x
    grad_residual = grad if ctx.has_residual else None
    return (grad_x, None, None, None, None, grad_residual) + (None,) * 7


torch.library.register_autograd("mixgemm::linear", _backward, setup_context=_setup_context,
                                lib=_library)


def _in_forward_mode() -> bool:
    if forward_ad._current_level >= 0:
        return True
    functorch = torch._C._functorch
    transform = functorch.peek_interpreter_stack()
    return transform is not None and transform.key() == functorch.TransformType.Jvp


def linear(x: torch.Tensor, *operands: Any) -> torch.Tensor:
    """The op. Refuses forward-mode gradients, which PyTorch would drop without a word."""
    if not torch.compiler.is_dynamo_compiling() and _in_forward_mode():
        residual = operands[4]
        for tensor in (x,) if residual is None else (x, residual):
            if torch._VF._unpack_dual(tensor, level=0)[1] is not None:
                raise NotImplementedError("mixgemm: no forward-mode gradient; use reverse mode")
    return torch.ops.mixgemm.linear(x, *operands)


def matmul(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor,
           zeros: torch.Tensor | None = None, bias: torch.Tensor | None = None,
           epilogue: str | None = None, *, n: int, group_size: int, zero: str = "none",
           residual: torch.Tensor | None = None, alpha: float = 1.0, pdl: bool = False,
           permutation: torch.Tensor | None = None) -> torch.Tensor:
    """y = activation(alpha * (x @ dequant(weight).T) + bias) + residual: the op, on tensors.

    x: [..., K] of the scales' dtype; copied where its rows aren't contiguous. codes, scales, zeros,
    permutation: as `Linear` holds them, see this file's head. n: output features N. The rest as for
    `mixgemm.matmul`. Differentiable in x and residual (through a dense copy of the weight: slow).
    """
    return linear(x, codes, scales, zeros, bias, residual, n, group_size, zero, epilogue or "none",
                  alpha, pdl, permutation)
