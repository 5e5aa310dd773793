# SPDX-License-Identifier: Apache-2.0
"""Whole models: quantize_model, load_quantized, and one of transformers."""

import copy

import pytest

torch = pytest.importorskip("torch")

from support_torch import close, device, fixed_seed  # noqa: E402, F401

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.torch


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(100, 64)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(64, 96), "down": torch.nn.Linear(96, 64)})
            for _ in range(2))
        self.attention = torch.nn.MultiheadAttention(64, 2)
        self.head = torch.nn.Linear(64, 100, bias=False)
        self.head.weight = self.embed.weight
        self.lm_head = torch.nn.Linear(64, 10)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return self.lm_head(x)


def test_quantize_model_replaces_what_it_should(device):
    model = Tied().to(device)
    ids = torch.arange(20, device=device)
    before = model(ids)
    calls = []
    done = mt.quantize_model(model, 8, 32, progress=lambda *a: calls.append(a))
    assert done is model
    replaced = [name for name, m in model.named_modules() if isinstance(m, mt.Linear)]
    assert replaced == ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    assert calls == [(name, i + 1, 4) for i, name in enumerate(replaced)]
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        assert (model(ids) - before).norm() / before.norm() < 0.02
    mt.quantize_model(model, skip=(), select=lambda name, _: name == "lm_head", progress=False)
    assert isinstance(model.lm_head, mt.Linear) and model.lm_head.codes.device == device


def test_quantize_model_keeps_one_dense_layer_at_most():
    """Every dense weight is gone before the next layer is reported."""
    import weakref
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive = []
    mt.quantize_model(model, progress=lambda *_: alive.append(sum(w() is not None for w in weights)))
    assert alive == [3, 2, 1, 0]


def test_load_quantized(tmp_path, device):
    model = Tied().to(device)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    packed = {name: mixgemm.quantize_packed(state.pop(name + ".weight"), 8, 32)
              for name in ("blocks.0.up", "blocks.1.down")}
    mixgemm.save(tmp_path / "m.safetensors", state | packed)
    fresh = mt.load_quantized(Tied().to(device), tmp_path / "m.safetensors", progress=False)
    ids = torch.arange(20, device=device)
    with torch.no_grad():
        assert (fresh(ids) - model(ids)).norm() / model(ids).norm() < 0.02
    assert isinstance(fresh.blocks[0]["up"], mt.Linear)
    assert type(fresh.blocks[0]["down"]) is torch.nn.Linear
    with torch.device("meta"):
        empty = Tied()
    made = mt.load_quantized(empty, tmp_path / "m.safetensors", progress=False)
    assert made.blocks[0]["up"].codes.device.type == "cpu"
    assert made.head.weight is made.embed.weight
    assert torch.equal(made(ids.cpu()), mt.load_quantized(Tied(), tmp_path / "m.safetensors")(ids.cpu()))
    for name, error, match in (("nowhere", mixgemm.NotFoundError, "no module nowhere"),
                               ("embed", InvalidArgumentError, "embed must be an nn.Linear"),
                               ("lm_head", InvalidArgumentError, "lm_head must be 96 x 64")):
        mixgemm.save(tmp_path / "bad.safetensors", {name: packed["blocks.0.up"]})
        with pytest.raises(error, match=match):
            mt.load_quantized(Tied(), tmp_path / "bad.safetensors", progress=False)


@pytest.mark.transformers
def test_a_transformers_model_generates(device):
    """The README's example, on a small model with random weights: greedy tokens of the quantized
    model are those of the dense model with the same (dequantized) weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=192, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, vocab_size=99,
                                      tie_word_embeddings=False)
    dense = transformers.LlamaForCausalLM(config).eval().to(device, torch.float32)
    model = mt.quantize_model(copy.deepcopy(dense), 8, 32, progress=False)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, mt.Linear)}
    assert len(layers) == 14 and type(model.lm_head) is torch.nn.Linear
    for name, layer in layers.items():
        dense.get_submodule(name).weight.data = layer.dequantize().float()
    ids = torch.arange(1, 9, device=device)[None]
    with torch.inference_mode():
        close(model(ids).logits.half(), dense(ids).logits.double())
        tokens = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert tokens.shape[1] > ids.shape[1]
