"""What makes an image of the sampling page again: a command line, Python lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.generate.generator import Generator

SLIDERS = ("n", "seed", "classes", "sampler", "steps", "guidance")


def told(model: Generator, request: Mapping[str, Any]) -> dict[str, Any]:
    """Of a request (`Generator.request`) what a command must say: the sliders, and what is not the model's default."""
    known = {key: value for key, value in request.items() if key in SLIDERS or value != model.defaults.get(key)}
    usual = [] if "prompts" in known or "attributes" in known else model.request()["classes"]
    if known["classes"] == usual:
        del known["classes"]
    else:
        known["classes"] = [model.classes[label] for label in known["classes"]]
    if "attributes" in known:
        known["attributes"] = {name: only for name, (only,) in known["attributes"].items()}
    return known


def command_line(name: str, model: Generator, request: Mapping[str, Any], root: Path) -> str:
    """The `ldm sample` command of a request of the model `name`: the same images, bit for bit."""
    from pipeline.generate.prompts import said

    words = ["ldm", "sample", name, "--out", "samples"]
    for key, value in told(model, request).items():
        if key == "n":
            words += ["-n", str(value)]
        elif key == "classes":
            numbers = map(str, request["classes"])
            words += ["--classes", ",".join(numbers if any("," in one for one in value) else value)]
        elif key == "prompts":
            words += [word for prompt in value for word in ("--prompt", said(prompt))]
        elif key == "attributes":
            known = model.options["condition"]["attributes"]
            words += [word for one in value for word in ("--set", f"{one}={text_of(known[one], value[one])}")]
        elif key == "scales":
            words += [word for one, scale in value.items() for word in ("--scale", f"{one}={scale}")]
        else:
            words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list | tuple) else [value])]
    if name.startswith("models:"):
        words += ["--root", str(root)]
    return shlex.join(words)


def text_of(options: Mapping[str, Any], value: Any) -> str:
    """An attribute's value as `--set` takes it."""
    return str(options.get("separator", ",").join(value)) if isinstance(value, list) else str(value)


def python_lines(name: str, model: Generator, request: Mapping[str, Any], root: Path) -> str:
    """The Python lines of a request of the model `name`."""
    given = ", ".join(f"{key}={value!r}" for key, value in told(model, request).items())
    place = f", root={str(root)!r}" if name.startswith("models:") else ""
    last = f"images = model.sample({given})  # uint8 [n, {'T, ' if model.clip else ''}H, W, C]"
    if model.tokenizer is not None:
        last = f"texts = model.texts(model.request({given}))"
    if model.sound is not None:
        last = f"sounds = model.sounds(model.request({given}))  # float32 [n, C, samples], {model.sound.rate} a second"
    return f"from pipeline.generate import load_pretrained\n\nmodel = load_pretrained({name!r}{place})\n{last}"


def set_words(option: str, model: Generator, told: Mapping[str, Any]) -> list[str]:
    """`--set NAME=VALUE`, or another option, of each condition that is told: a class, a caption, attributes."""
    known = model.options["condition"].get("attributes", {})
    return [w for name, value in told.items() for w in (option, f"{name}={text_of(known.get(name, {}), value)}")]


def verb_line(verb: str, name: str, files: Sequence[str], words: Sequence[str], root: Path, out: str) -> str:
    """The command line of a verb over files, with the model `name`."""
    place = [] if str(root) == "runs" else ["--root", str(root)]
    return shlex.join(["ldm", verb, name, *files, *words, *place, "--out", out])
