# SPDX-License-Identifier: Apache-2.0
"""Quantize a model of `transformers` to int4 and generate. Any causal language model will do:

    python generate.py MODEL_NAME_OR_FOLDER
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mixgemm.torch

name = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float16)
mixgemm.torch.quantize_model(model, bits=4, group_size=128)  # on the CPU, layer by layer
model.to("cuda" if torch.cuda.is_available() else "cpu")

inputs = tokenizer("The quick brown fox", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
