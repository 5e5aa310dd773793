# SPDX-License-Identifier: Apache-2.0
"""A linear layer with a packed weight."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad as _forward_ad
from torch.nn.modules import module as _hooks

from .. import _core
from .._errors import InvalidArgumentError
from .._weights import quantize_packed
from . import _ops

_is_compiling = torch.compiler.is_dynamo_compiling
_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_BUFFERS = ("codes", "scales", "zeros", "bias", "permutation")


class Linear(nn.Module):
    """y = activation(x @ dequant(weight).T + bias), in place of an nn.Linear.

    x: [..., K]; y: [..., N]. The products take x in `dtype`; a float32 x is rounded to it, and y is
    float32 again, so that a float32 model runs unchanged around the layer.

    Buffers: codes (uint8), scales (dtype), zeros (asymmetric only), bias (dtype), permutation
    (int32, where columns are permuted); `state_dict` has them, `.to()`, `.half()` and `.bfloat16()`
    move and convert them. `.float()` leaves them as they are. Gradients flow to x, not to the weight.

    Made by `from_linear`, `from_packed` or `quantize_model`; the constructor makes an empty layer to
    load a state_dict into.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, bits: int = 4,
                 group_size: int = 128, zero: str = "none", dtype: torch.dtype = torch.float16,
                 epilogue: str | None = None, device: Any = None, pdl: bool = False,
                 permuted: bool = False):
        super().__init__()
        if dtype not in _ops._DTYPES:
            raise InvalidArgumentError(f"dtype must be torch.float16 or torch.bfloat16; got {dtype}")
        if bits not in (4, 8):
            raise InvalidArgumentError(f"bits must be 4 or 8; got {bits}")
        if zero not in ("none", "integer", "scaled"):
            raise InvalidArgumentError(
                f'zero must be "none", "integer" or "scaled"; got "{zero}"')
        if group_size not in (0, 16, 32, 64, 128):
            raise InvalidArgumentError("group_size must be 0 (per column), 16, 32, 64 or 128; got "
                                       f"{group_size}")
        if in_features < 1 or out_features < 1:
            raise InvalidArgumentError("in_features and out_features must be at least 1; got "
                                       f"{in_features} and {out_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.bits = bits
        self.group_size = group_size
        self.zero = zero
        self._epilogue = epilogue
        self._pdl = pdl
        strips, blocks = (out_features + 15) // 16, (in_features + 63) // 64
        groups = 1 if group_size == 0 else -(-in_features // group_size)
        self.register_buffer("codes", torch.zeros((strips, blocks, 128 * bits), dtype=torch.uint8,
                                                  device=device))
        self.register_buffer("scales", torch.zeros((strips, groups, 16), dtype=dtype,
                                                   device=device))
        self.register_buffer("zeros", None if zero == "none" else torch.zeros(
            (strips, groups, 16), dtype=dtype, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device)
                             if bias else None)
        self.register_buffer("permutation", torch.arange(in_features, dtype=torch.int32,
                                                         device=device) if permuted else None)
        self._bound: _core.BoundWeight | None = None
        self._bound_to: list[tuple[str, torch.Tensor | None, int | None]] = []
        self._settle_zeros()

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int = 4, group_size: int = 128,
                    zero: str = "none", *, dtype: torch.dtype | None = None,
                    epilogue: str | None = None, pdl: bool = False, search_clip: bool = True,
                    num_threads: int = 0) -> Linear:
        """Quantizes an nn.Linear, on the CPU; the result is where the linear was.

        dtype: of the products; None: the linear's where that is 16-bit, else torch.float16.
        """
        weight = linear.weight.detach()
        if weight.device.type == "meta":
            raise InvalidArgumentError("a linear on the meta device has no weights to quantize")
        if dtype is None:
            dtype = weight.dtype if weight.dtype in _ops._DTYPES else torch.float16
        if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            weight = weight.float()
        packed = quantize_packed(weight.cpu().contiguous(), bits, group_size, zero,
                                 scale_dtype=_ops._DTYPES.get(dtype, str(dtype)),
                                 search_clip=search_clip, num_threads=num_threads)
        return cls.from_packed(packed, linear.bias, epilogue=epilogue, device=weight.device,
                               pdl=pdl)

    @classmethod
    def from_packed(cls, packed: _core.PackedWeight, bias: torch.Tensor | None = None, *,
                    epilogue: str | None = None, device: Any = None, pdl: bool = False) -> Linear:
        """A layer with a copy of a packed weight that is on the CPU. bias: [N] or None."""
        if not isinstance(packed, _core.PackedWeight):
            raise TypeError(f"packed must be a PackedWeight; got {type(packed).__name__}")
        dtype = torch.bfloat16 if packed.scale_dtype == "bfloat16" else torch.float16
        if bias is not None and tuple(bias.shape) != (packed.n,):
            raise InvalidArgumentError(f"bias must have shape ({packed.n},); got "
                                       f"{tuple(bias.shape)}")
        layer = cls(packed.k, packed.n, bias is not None, bits=packed.bits,
                    group_size=packed.group_size, zero=packed.zero, dtype=dtype,
                    epilogue=epilogue, device="cpu", pdl=pdl,
                    permuted=packed.permutation is not None)
        for name in ("codes", "scales", "zeros", "permutation"):
            part = getattr(packed, name)
            if part is not None:
                getattr(layer, name).copy_(torch.from_dlpack(part))
        if bias is not None:
            layer.bias.copy_(bias.detach())
        return layer if device is None else layer.to(device)

    @property
    def epilogue(self) -> str | None:
        """The activation: None, "relu", "gelu" (tanh) or "silu"."""
        return self._epilogue

    @epilogue.setter
    def epilogue(self, value: str | None) -> None:
        self._epilogue, self._bound = value, None

    @property
    def pdl(self) -> bool:
        """The promise that no kernel still in flight writes the weight, as for `mixgemm.matmul`."""
        return self._pdl

    @pdl.setter
    def pdl(self, value: bool) -> None:
        self._pdl, self._bound = value, None

    @property
    def dtype(self) -> torch.dtype:
        """Of the products: torch.float16 or torch.bfloat16."""
        return self.scales.dtype

    def dequantize(self) -> torch.Tensor:
        """The dense weight [N, K] that the codes stand for, in `dtype`. Slow: by way of the CPU."""
        return torch.ops.mixgemm.dequantize(self.codes, self.scales, self.zeros, self.out_features,
                                            self.in_features, self.group_size, self.zero,
                                            self.permutation)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Without nn.Module's own way and the dispatcher, where nobody watches either.
        if not _is_compiling():
            y = _calls.call(self, args, kwargs)
            if y is not None:
                return y
        return super().__call__(*args, **kwargs)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in_features], of any strides → [..., out_features]."""
        if _is_compiling() or _transforming() or not _calls.is_plain(input):
            return self._forward_op(input)
        if input.dtype is torch.float32:
            return self._forward_plain(input.to(self.scales.dtype)).to(torch.float32)
        return self._forward_plain(input)

    def _forward_plain(self, x: torch.Tensor) -> torch.Tensor:
        y = _calls.forward(self, x)
        return self._forward_bound(x) if y is None else y

    def _forward_bound(self, x: torch.Tensor) -> torch.Tensor:
        """What `forward` does where the extension can't: binds the buffers where they are
        new, copies x where its rows aren't contiguous, and leaves the rest to the op."""
        bound = self._bound
        buffers = self._buffers
        if bound is not None:
            for name, tensor, address in self._bound_to:
                now = buffers[name]
                if now is not tensor or now is not None and now.data_ptr() != address:
                    bound = None
                    break
        if bound is None:
            bound = self._bind()
        scales = buffers["scales"]
        if (x.dtype is not scales.dtype or x.device != scales.device or x.dim() == 0
                or x.size(-1) != self.in_features):
            return self._forward_op(x)
        return _ops.run(bound, x, self.in_features, self.out_features, None, 1.0)

    def _bind(self) -> _core.BoundWeight:
        codes, scales, zeros, bias, permutation = map(self._buffers.get, _BUFFERS)
        probe = scales.new_empty((0, self.in_features))
        _ops.check_operands(probe, codes, scales, zeros, bias, None, self.out_features, self.zero,
                            permutation)
        if bias is not None and not bias.is_contiguous():
            raise InvalidArgumentError("bias must be contiguous")
        bound = _ops.bind(codes, scales, zeros, bias, self.out_features, self.in_features,
                          self.group_size, self.zero, self.epilogue or "none", self.pdl, permutation)
        _ops.hold(bound, self._buffers, scales)
        self._bound_to = [(name, tensor, None if tensor is None else tensor.data_ptr())
                          for name, tensor in zip(_BUFFERS, (codes, scales, zeros, bias, permutation))]
        self._bound = bound
        return bound

    def _forward_op(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise InvalidArgumentError(f"x must have shape [..., {self.in_features}]; got "
                                       f"{tuple(x.shape)}")
        given = x.dtype
        if given is torch.float32:
            x = x.to(self.scales.dtype)
        y = _ops.linear(x, self.codes, self.scales, self.zeros, self.bias, None,
                        self.out_features, self.group_size, self.zero, self.epilogue or "none", 1.0,
                        self.pdl, self.permutation)
        return y.to(given) if given is torch.float32 else y

    def _settle_zeros(self) -> None:
        """Integer zeros are bytes on the CPU and 16-bit floats on a GPU; every code is exact in
        both."""
        self._bound = None
        if self.zeros is not None:
            as_bytes = self.zero == "integer" and self.zeros.device.type == "cpu"
            self.zeros = self.zeros.to(torch.uint8 if as_bytes else self.scales.dtype)

    def _apply(self, fn, recurse=True):
        before = {name: self._buffers[name] for name in ("scales", "zeros", "bias")}
        super()._apply(fn, recurse)
        if self.scales.dtype not in _ops._DTYPES:  # .float(): moved, but not widened
            for name, buffer in before.items():
                if buffer is not None:
                    self._buffers[name] = buffer.to(self._buffers[name].device)
        elif not self.scales.is_meta and not bool(torch.isfinite(self.scales).all()):
            self._buffers.update(before)
            raise InvalidArgumentError(f"scales must fit {self.scales.dtype}")
        self._settle_zeros()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        key = prefix + "zeros"
        if self.zero == "integer" and key in state_dict:
            state_dict = dict(state_dict)
            state_dict[key] = state_dict[key].to(self.zeros.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._settle_zeros()

    def __getstate__(self):
        state = self.__dict__.copy()
        state["_bound"], state["_bound_to"] = None, []
        return state

    def __deepcopy__(self, memo):
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        for key, value in self.__getstate__().items():
            made.__dict__[key] = copy.deepcopy(value, memo)
        return made

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}, bits={self.bits}, group_size={self.group_size}, "
                f"zero={self.zero}, dtype={self.scales.dtype}"
                + (f", epilogue={self.epilogue}" if self.epilogue else "")
                + (", permuted" if self.permutation is not None else ""))


# A question that a PyTorch doesn't know is answered yes: then every call goes its own way.
_calls = _core.TorchCalls(
    Linear, torch.Tensor,
    ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    (_hooks._global_forward_hooks, _hooks._global_forward_pre_hooks,
     _hooks._global_backward_hooks, _hooks._global_backward_pre_hooks),
    [getattr(torch._C, name, lambda: True)
     for name in ("_len_torch_dispatch_stack", "_len_torch_function_stack", "_is_tracing")],
    torch.is_grad_enabled, _forward_ad.__dict__)
