# SPDX-License-Identifier: Apache-2.0
"""Whole models: quantize every linear layer in place, or take them from a packed checkpoint."""

from __future__ import annotations

import os
import sys
from typing import Callable, Iterable

import torch
from torch import nn

from .._errors import InvalidArgumentError, NotFoundError
from .._files import load
from ._linear import Linear

Progress = Callable[[str, int, int], None]


def _bar(name: str, done: int, total: int) -> None:
    """A progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return
    filled = 30 * done // total
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {name[-40:]:<40}")
    if done == total:
        sys.stderr.write("\n")
    sys.stderr.flush()


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _linears(model: nn.Module, skip: Iterable[str]) -> list[tuple[str, nn.Linear]]:
    """The linears to replace: exactly nn.Linear (subclasses mean something else by their weight),
    whose weight no other module uses, and not named in `skip`."""
    skip = tuple(skip)
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return [(name, module) for name, module in model.named_modules()
            if type(module) is nn.Linear and users[id(module.weight)] == 1
            and not any(name == s or name.endswith("." + s) for s in skip)]


def quantize_model(model: nn.Module, bits: int = 4, group_size: int = 128, zero: str = "none", *,
                   dtype: torch.dtype | None = None, skip: Iterable[str] = ("lm_head",),
                   select: Callable[[str, nn.Linear], bool] | None = None,
                   search_clip: bool = True, pdl: bool = False,
                   progress: bool | Progress = True, num_threads: int = 0) -> nn.Module:
    """Replaces every nn.Linear of a model by a quantized `Linear`, in place; returns the model.

    bits, group_size, zero: as for `mixgemm.quantize`.
    dtype: of the products; None: each linear's own where that is 16-bit, else torch.float16.
    skip: names, or last parts of names, that stay as they are. Linears that share their weight with
        another module (tied embeddings) stay too.
    search_clip, num_threads: as for `mixgemm.quantize`.
    pdl: as for `mixgemm.matmul`; True is right for inference, where nothing writes weights.
    select: a further say, select(name, linear) → whether to replace it.
    progress: True: a bar, on a terminal; or a function of (name, done, total).

    One layer is quantized at a time, on the CPU, and its dense weight let go before the next: the
    memory needed besides the model is that of its largest layer. A model that is to end on a GPU may
    start on the CPU, so that only packed weights ever go there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if type(model) is nn.Linear:
        raise InvalidArgumentError("model must contain its linears; for a single nn.Linear take "
                                   "Linear.from_linear")
    report = progress if callable(progress) else _bar if progress else None
    names = [name for name, linear in _linears(model, skip)
             if select is None or select(name, linear)]
    for done, name in enumerate(names, 1):
        linear = model.get_submodule(name)
        made = Linear.from_linear(linear, bits, group_size, zero, dtype=dtype, pdl=pdl,
                                  search_clip=search_clip, num_threads=num_threads)
        made.train(linear.training)
        _set_module(model, name, made)
        del linear
        if report is not None:
            report(name, done, len(names))
    return model


def load_quantized(model: nn.Module, path: str | os.PathLike[str], *,
                   progress: bool | Progress = True) -> nn.Module:
    """Puts a packed checkpoint (`mixgemm quantize`, `mixgemm convert`) into a model, in place.

    Each packed weight replaces the nn.Linear of its name (or of its name less ".weight"), with the
    bias that the checkpoint or else the model has; dense tensors are copied into parameters and
    buffers of their names. The model may be on any device; one on the meta device gets what the
    checkpoint has.

    Raises NotFoundError where a name of the checkpoint isn't in the model.
    """
    checkpoint = load(path)
    report = progress if callable(progress) else _bar if progress else None
    total = len(checkpoint)
    used: set[str] = set()
    done = 0
    for name in checkpoint.packed:
        target = name.removesuffix(".weight")
        try:
            linear = model.get_submodule(target)
        except AttributeError:
            raise NotFoundError(f"the model has no module {target}, which the checkpoint has a "
                                "packed weight for") from None
        packed = checkpoint[name]
        if not isinstance(linear, nn.Linear):
            raise InvalidArgumentError(f"{target} must be an nn.Linear; got "
                                       f"{type(linear).__name__}")
        if (linear.out_features, linear.in_features) != packed.shape:
            raise InvalidArgumentError(f"{target} must be {packed.n} x {packed.k} as in the "
                                       f"checkpoint; got {linear.out_features} x "
                                       f"{linear.in_features}")
        bias, bias_name = linear.bias, target + ".bias"
        if bias is not None and bias_name in checkpoint.dense:
            bias = _tensor(checkpoint[bias_name])
            used.add(bias_name)
        device = linear.weight.device
        made = Linear.from_packed(packed, bias, device="cpu" if device.type == "meta" else device)
        _set_module(model, target, made.train(linear.training))
        done += 1
        if report is not None:
            report(target, done, total)
    state = (dict(model.named_parameters(remove_duplicate=False))
             | dict(model.named_buffers(remove_duplicate=False)))
    made_of: dict[int, torch.Tensor] = {}
    for name in checkpoint.dense:
        done += 1
        if name not in used:
            if name not in state:
                raise NotFoundError(f"the model has no parameter or buffer {name}, which the "
                                    "checkpoint has")
            _put(model, name, state[name], _tensor(checkpoint[name]), made_of)
        if report is not None:
            report(name, done, total)
    return model


def _put(model: nn.Module, name: str, old: torch.Tensor, value: torch.Tensor,
         made_of: dict[int, torch.Tensor]) -> None:
    """Fills a parameter or buffer. One on the meta device is replaced, tied ones by the same."""
    if tuple(old.shape) != tuple(value.shape):
        raise InvalidArgumentError(f"{name} must have shape {tuple(value.shape)} as in the "
                                   f"checkpoint; got {tuple(old.shape)}")
    if not old.is_meta:
        with torch.no_grad():
            old.copy_(value)
        return
    if id(old) not in made_of:
        value = value.to(old.dtype)
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
        made_of[id(old)] = value
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, made_of[id(old)])


_TORCH = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
          "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "F32": torch.float32,
          "I64": torch.int64, "F64": torch.float64}


def _tensor(dense) -> torch.Tensor:
    """A copy of a dense tensor of a checkpoint."""
    if dense.dtype not in _TORCH:
        raise InvalidArgumentError(f"PyTorch has no dtype for {dense.dtype}")
    return torch.from_numpy(dense.bytes.copy()).view(_TORCH[dense.dtype]).reshape(dense.shape)
