#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A decoder of realistic size, fp16 against mixgemm: greedy decode under CUDA graphs, and prefill.

    bench/python/decoder.py [--model transformers|own] [--layers 32] [-o rows.jsonl]

The architecture and the sizes are Llama 3 8B's, the weights random. `transformers` builds the model
from its config; `own`, which is also taken where that fails, is the small module below, whose q, k, v
and gate, up are one product each, as inference engines have it. Decode: a prompt, then --repeats times
--steps greedy steps with a static KV cache, one step captured in a CUDA graph and replayed. Prefill:
2048 tokens, eager. Logits are compared with fp16's (what quantization costs) at full depth, and with
those of fp16 weights dequantized from the same codes (what the products cost) at --check-layers layers.
Tokens of the replayed graph are compared with eager ones, those with pdl with those without.

Prints a table; --output takes one JSON object a line. Times are medians of --repeats, by CUDA events.
What doesn't fit into --seconds is left out, and said so.
"""

import argparse
import gc
import json
import pathlib
import statistics
import sys
import time
import traceback

import torch
from torch import nn
from torch.nn import functional as F

import mixgemm
import mixgemm.torch

SIZES = {
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, vocab_size=128256),
    "tiny": dict(hidden_size=128, intermediate_size=384, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, vocab_size=512),
}


# ---------------------------------------------------------------- two ways to a model


class OwnLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.head_dim = c["hidden_size"] // c["num_attention_heads"]
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.norm1 = nn.RMSNorm(c["hidden_size"], eps=1e-5)
        self.qkv = nn.Linear(c["hidden_size"], rows, bias=False)
        self.o = nn.Linear(c["hidden_size"], c["hidden_size"], bias=False)
        self.norm2 = nn.RMSNorm(c["hidden_size"], eps=1e-5)
        self.gate_up = nn.Linear(c["hidden_size"], 2 * c["intermediate_size"], bias=False)
        self.down = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x, rotation, positions, mask, cache):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, -1, self.head_dim).transpose(1, 2).split(
            (self.heads, self.kv_heads, self.kv_heads), dim=1)
        cos, sin = rotation
        turn = lambda u: u * cos + torch.cat((-u[..., self.head_dim // 2:],  # noqa: E731
                                              u[..., :self.head_dim // 2]), -1) * sin
        q, k = turn(q), turn(k)
        if cache is not None:
            keys, values = cache
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            k, v = keys, values
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                           enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class OwnModel(nn.Module):
    """A Llama-style decoder, no more than the benchmark needs."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(OwnLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=1e-5)
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def make_cache(self, batch, length):
        layer = self.layers[0]
        like = self.embed.weight
        shape = (batch, layer.kv_heads, length, layer.head_dim)
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def run(self, ids, positions, mask, cache):
        """The last token's logits [B, vocab]; positions [T]; mask [1, 1, T, length] or None: causal."""
        half = torch.arange(0, self.layers[0].head_dim, 2, device=ids.device)
        angle = positions[:, None] / 500000.0 ** (half / self.layers[0].head_dim)
        angle = torch.cat((angle, angle), -1)
        x = self.embed(ids)
        rotation = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, rotation, positions, mask, cache and cache[i])
        return self.lm_head(self.norm(x[:, -1]))


class HubModel(nn.Module):
    """LlamaForCausalLM from its config, behind OwnModel's interface."""

    def __init__(self, c):
        super().__init__()
        import transformers
        self.config = transformers.LlamaConfig(**c, rope_theta=500000.0, rms_norm_eps=1e-5,
                                               tie_word_embeddings=False,
                                               max_position_embeddings=8192)
        self.model = transformers.LlamaForCausalLM(self.config)

    def make_cache(self, batch, length):
        import transformers
        return transformers.StaticCache(self.config, max_cache_len=length)

    def run(self, ids, positions, mask, cache):
        if mask is None:  # positions count from 0; given ones would be looked through for packed rows
            positions = None
        else:
            mask = mask.expand(ids.shape[0], -1, -1, -1)
            positions = positions[None].expand(ids.shape[0], -1)
        return self.model(input_ids=ids, attention_mask=mask, past_key_values=cache,
                          position_ids=positions, use_cache=cache is not None,
                          logits_to_keep=1).logits[:, -1]


def build(kind, size, layers, device):
    """A model with random weights, made layer by layer where it is to be."""
    config = dict(SIZES[size])
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    torch.manual_seed(1)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            model = (HubModel if kind == "transformers" else OwnModel)(config)
    finally:
        torch.set_default_dtype(default)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


# ---------------------------------------------------------------- what is measured


def elapsed_ms(function, device):
    """By CUDA events on a GPU, by the clock elsewhere."""
    if device == "cpu":
        begin = time.perf_counter()
        function()
        return (time.perf_counter() - begin) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


class Decoder:
    """A prompt in the cache, then greedy steps: everything that a step changes stays on the device,
    so that one captured step can be replayed. `tokens` [batch, length] has what was generated."""

    WARMUP = 3  # steps before the capture

    def __init__(self, model, batch, prompt, steps, device, vocab, graph=True):
        self.length = prompt + self.WARMUP + steps + 1
        ids = torch.randint(vocab, (batch, prompt), device=device,
                            generator=torch.Generator(device).manual_seed(2))
        places = torch.arange(self.length, device=device)
        positions = places[:prompt]
        mask = (places[None] <= positions[:, None])[None, None]
        self.model, self.places, self.first = model, places, prompt
        self.cache = model.make_cache(batch, self.length)
        self.token = model.run(ids, positions, mask, self.cache).argmax(-1, keepdim=True)
        self.position = torch.tensor([prompt], device=device)
        self.tokens = torch.full((batch, self.length), -1, device=device)
        self.step = self._step
        if device == "cuda" and graph:
            self._capture()
        else:
            for _ in range(self.WARMUP):
                self._step()

    def _step(self):
        self.tokens.index_copy_(1, self.position, self.token)
        mask = (self.places[None] <= self.position[:, None])[None, None]
        logits = self.model.run(self.token, self.position, mask, self.cache)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position.add_(1)

    def _capture(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARMUP):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        self.step = self.graph.replay

    def generated(self, steps):
        """The first tokens, those of the warm-up too, on the CPU."""
        return self.tokens[:, self.first:self.first + self.WARMUP + steps].cpu()


def same_share(a, b):
    """Which share of tokens is the same, over the columns that both have."""
    columns = min(a.shape[1], b.shape[1])
    return (a[:, :columns] == b[:, :columns]).float().mean().item()


@torch.inference_mode()
def measure(model, label, args, emit, before=None):
    """Decode and prefill rows; the tokens for each batch. before: those of the same weights."""
    vocab = SIZES[args.size]["vocab_size"]
    found = {}
    for batch in args.batch:
        if args.late(f"decode {label} at batch {batch}", emit):
            continue
        steps = args.steps * args.repeats
        decoder = Decoder(model, batch, args.prompt, steps + 1, args.device, vocab)
        decoder.step()
        times = [elapsed_ms(lambda: [decoder.step() for _ in range(args.steps)], args.device)
                 / args.steps for _ in range(args.repeats)]
        found[batch] = decoder.generated(steps)
        del decoder
        ms = statistics.median(times)
        more = {}
        if before is not None and batch in before:
            more["same_tokens_as_without_pdl"] = same_share(found[batch], before[batch])
        elif args.device == "cuda" and batch == args.batch[0]:
            eager = Decoder(model, batch, args.prompt, steps + 1, args.device, vocab, graph=False)
            for _ in range(args.eager_steps):
                eager.step()
            more["same_tokens_as_eager"] = same_share(found[batch],
                                                      eager.generated(args.eager_steps))
            del eager
        emit(bench="decode", weights=label, batch=batch, prompt=args.prompt, steps=args.steps,
             ms_per_step=ms, tokens_per_s=batch / ms * 1e3, ms_min=min(times), ms_max=max(times),
             **more)
    if not args.late(f"prefill {label}", emit):
        ids = torch.randint(vocab, (1, args.prefill), device=args.device)
        positions = torch.arange(args.prefill, device=args.device)
        prefill = lambda: model.run(ids, positions, None, None)  # noqa: E731
        times = [elapsed_ms(prefill, args.device) for _ in range(args.repeats + 2)][2:]
        ms = statistics.median(times)
        emit(bench="prefill", weights=label, batch=1, tokens=args.prefill, ms=ms,
             tokens_per_s=args.prefill / ms * 1e3, ms_min=min(times), ms_max=max(times))
    return found


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@torch.inference_mode()
def sample_logits(model, args):
    """The last token's logits of a few sequences, the same for each model of a size."""
    ids = torch.randint(SIZES[args.size]["vocab_size"], (4, 64), device=args.device,
                        generator=torch.Generator(args.device).manual_seed(3))
    return model.run(ids, torch.arange(64, device=args.device), None, None)


def emit_logits(emit, args, layers, against, found, expected):
    emit(bench="logits", weights=quantized_label(args), layers=layers, against=against,
         rel_err=relative_error(found, expected),
         same_argmax=(found.argmax(-1) == expected.argmax(-1)).float().mean().item())


def check(kind, args, emit):
    """Logits of a model of a few layers: against fp16, and against fp16 of the same codes."""
    model = build(kind, args.size, args.check_layers, args.device)
    dense = sample_logits(model, args)
    quantize(model, args)
    quantized = sample_logits(model, args)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, mixgemm.torch.Linear):
            linear = nn.Linear(layer.in_features, layer.out_features, False, device="meta")
            linear.weight = nn.Parameter(layer.dequantize(), requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, linear)
    emit_logits(emit, args, args.check_layers, "fp16", quantized, dense)
    emit_logits(emit, args, args.check_layers, "fp16 of the same codes", quantized,
                sample_logits(model, args))


def quantize(model, args):
    mixgemm.torch.quantize_model(model, args.bits, args.group, progress=False,
                                 search_clip=args.search_clip)


def quantized_label(args):
    return f"mixgemm int{args.bits} g{args.group}"


def free():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gigabytes(model):
    return sum(t.numel() * t.element_size()
               for t in [*model.parameters(), *model.buffers()]) / 1e9


def run(kind, args, emit):
    begin = time.perf_counter()
    model = build(kind, args.size, args.layers, args.device)
    emit(bench="memory", weights="fp16", model_gb=gigabytes(model),
         build_s=time.perf_counter() - begin)
    measure(model, "fp16", args, emit)
    dense = sample_logits(model, args)
    free()
    begin = time.perf_counter()
    quantize(model, args)
    label = quantized_label(args)
    emit(bench="memory", weights=label, model_gb=gigabytes(model),
         quantize_s=time.perf_counter() - begin)
    free()
    layers = args.layers or SIZES[args.size]["num_hidden_layers"]
    emit_logits(emit, args, layers, "fp16", sample_logits(model, args), dense)
    plain = measure(model, label, args, emit)
    for layer in model.modules():
        if isinstance(layer, mixgemm.torch.Linear):
            layer.pdl, layer._bound = True, None
    measure(model, label + " pdl", args, emit, plain)
    del model
    free()
    if not args.late("logits of the same codes", emit):
        check(kind, args, emit)


def print_table(rows):
    """Tokens/s and their ratios to fp16, for a person."""
    timed = [row for row in rows if row["bench"] in ("decode", "prefill")]
    base = {(row["bench"], row["batch"]): row["tokens_per_s"] for row in timed
            if row["weights"] == "fp16"}
    print(f"{'':<10}{'weights':<24}{'batch':>6}{'ms':>10}{'tokens/s':>12}{'to fp16':>9}")
    for row in timed:
        ratio = row["tokens_per_s"] / base.get((row["bench"], row["batch"]), float("nan"))
        ms = row.get("ms_per_step", row.get("ms"))
        print(f"{row['bench']:<10}{row['weights']:<24}{row['batch']:>6}{ms:>10.3f}"
              f"{row['tokens_per_s']:>12.1f}{ratio:>9.2f}")
    for row in rows:
        if row["bench"] == "logits":
            print(f"logits    {row['weights']} against {row['against']}, {row['layers']} layers: "
                  f"error {row['rel_err']:.2e}, same argmax {row['same_argmax']:.2f}")
        elif row["bench"] == "memory":
            print(f"memory    {row['weights']}: {row['model_gb']:.2f} GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["transformers", "own"], default="transformers")
    parser.add_argument("--size", choices=sorted(SIZES), default="8b")
    parser.add_argument("--layers", type=int, default=0, help="[the size's own]")
    parser.add_argument("--check-layers", type=int, default=2)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--search-clip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=lambda s: [int(v) for v in s.split(",")], default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the first step")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--eager-steps", type=int, default=8)
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after so long")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--commit", default="unknown", help="for the record")
    parser.add_argument("-o", "--output", type=pathlib.Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("decoder: no CUDA device (--device cpu --size tiny tries the program itself)")

    rows = []
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    kind = args.model
    begin = time.perf_counter()

    def emit(**row):
        rows.append({"gpu": name, "model": f"llama-{args.size}", "code": kind,
                     "layers": args.layers or SIZES[args.size]["num_hidden_layers"], **row,
                     "commit": args.commit, "torch": torch.__version__,
                     "at_s": round(time.perf_counter() - begin, 1)})
        print(json.dumps(rows[-1]), flush=True)
        if args.output:  # each time, so that a run cut short leaves what it had
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def late(what, emit):
        if time.perf_counter() - begin < args.seconds:
            return False
        emit(bench="left out", what=what)
        return True

    args.late = late
    try:
        run(kind, args, emit)
    except Exception as error:  # another version of transformers, or none
        if kind != "transformers":
            raise
        traceback.print_exc()
        emit(bench="failed", error=f"{type(error).__name__}: {error}"[:500])
        kind = "own"
    if kind != args.model:  # out here, where the failed model is gone with its exception
        free()
        run(kind, args, emit)
    print_table(rows)


if __name__ == "__main__":
    main()
