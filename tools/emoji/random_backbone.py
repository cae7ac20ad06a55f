#!/usr/bin/env python3
"""Writes a checkpoint with the shape, tokeniser and preprocessing of another and random weights.

    pip install numpy safetensors
    python random_backbone.py CHECKPOINT OUT

Weights are Gaussian with the checkpoint's `initializer_range`, biases 0, the scales of norms 1, as
`transformers` starts a ViLT. The seed is 0.
"""
import json, pathlib, shutil, sys

import numpy as np
from safetensors.numpy import load_file, save_file


def main(checkpoint, out):
    out.mkdir(parents=True)
    for file in checkpoint.glob("*.json"):
        shutil.copy(file, out)
    deviation = json.loads((checkpoint / "config.json").read_text())["initializer_range"]
    rng, tensors = np.random.default_rng(0), {}
    for name, tensor in sorted(load_file(checkpoint / "model.safetensors").items()):
        if name.endswith("bias"):
            value = np.zeros(tensor.shape)
        elif "norm" in name.lower():
            value = np.ones(tensor.shape)
        else:
            value = rng.normal(0, deviation, tensor.shape)
        tensors[name] = value.astype(tensor.dtype)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
