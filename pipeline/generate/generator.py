"""A trained model and images from it: sample, encode, decode. A model is one folder:

    config.json              how to build it and what it was made of      latents.json   the latent space
    autoencoder.safetensors  denoiser.safetensors (averaged weights)

With autoguidance also weaker.safetensors. No pickle. Networks, samplers and guidance are in `models/`, how latents are
sampled in `sampling.py`; the folder is written and read by `folder.py`, files of samples by `samples.py`; the latent
space is `data/latents.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.autoencoders import data_sides, latent_sides
from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.patches import sides_of
from pipeline.data import spectrogram, tokens
from pipeline.data.latents import LatentSpace
from pipeline.data.pictures import Images, strips
from pipeline.data.spectrogram import Spectrogram, Waves
from pipeline.data.text_encoders import Embedding
from pipeline.data.tokens import Tokenizer
from pipeline.data.value_map import ValueMap, floats
from pipeline.errors import UserError
from pipeline.generate import adapters, sampling, students, told
from pipeline.generate.class_numbers import class_numbers
from pipeline.generate.finite import mind
from pipeline.networks import build_network
from pipeline.schema.data import Shape, text

DEFAULTS: dict[str, Any] = {**sampling.DEFAULTS, "batch_size": 32}


@dataclass(frozen=True)
class Generator:
    """A model that is ready to sample.

    options: as in config.json (latent, backbone, condition, classes, path, prediction). space: raw <-> normalised
    latents. defaults: what `sample` takes where it is not told. about: name, weights (SHA-256 by file), lineage.
    averages: files of other weights of the network, by name (`live`, or a half-life), for autoguidance. known: captions
    that a frozen text encoder has read; it is asked for others. base: of an adapter, the file of the weights that it
    goes with. tokenizer: of a model of text, which makes `texts` in place of images.
    """

    options: dict[str, Any]
    autoencoder: Any = field(repr=False)
    network: nn.Module = field(repr=False)
    space: LatentSpace = field(repr=False)
    device: torch.device
    defaults: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    about: dict[str, Any] = field(default_factory=dict)
    averages: dict[str, Path] = field(default_factory=dict)
    known: dict[str, Embedding] = field(default_factory=dict, repr=False)
    base: Path | None = None
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    _loaded: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def sides(self) -> list[tuple[int, ...]]:
        """Sides of the latents that can be asked for, the usual ones first."""
        latent = self.options["latent"]
        return [tuple(sides) for sides in latent.get("buckets", [sides_of(latent["size"])])]

    @property
    def shapes(self) -> list[Shape]:
        """(height, width) of the images or frames that can be asked for, in pixels, the usual one first."""
        self._only_pixels()
        return [(height, width) for *_, height, width in (data_sides(self.autoencoder, sides) for sides in self.sides)]

    @property
    def clip(self) -> dict[str, Any] | None:
        """Of a model of clips {frames, rate}: of a sample, and a second; None for models of other data."""
        return self.options.get("clip")

    @cached_property
    def values(self) -> ValueMap | None:
        """What the images' values mean; None for 8 bits of gray or RGB."""
        return ValueMap.from_json(self.options["values"]) if self.options.get("values") else None

    @cached_property
    def sound(self) -> Spectrogram | None:
        """Of a model of sound, whose images are spectrograms: the transform there and back."""
        return Spectrogram.from_json(self.options["sound"]) if self.options.get("sound") else None

    def sounds(self, request: dict[str, Any], first: int = 0) -> Waves:
        """The sounds of a `request` to a model of sound, from number `first` on: float32 [n, C, samples], full scale is
        1 (and may be passed). UserError where the model is of other data; NotFinite as of `sample`."""
        return self.waves(self.images(request, first))

    def waves(self, images: Images) -> Waves:
        """Sounds float32 [n, C, samples] of spectrograms [n, mels, frames, C] in dB, as `images` gives them."""
        return spectrogram.sounds_of(self.sound, images)

    @property
    def channels(self) -> int:
        """Of an image: 1 or 3, or its number of bands."""
        latent = self.options["latent"]
        return int(self.decode(torch.zeros(1, latent["channels"], *sides_of(latent["size"]))).shape[-1])

    @property
    def classes(self) -> list[str]:
        """Names of the classes that can be asked for; empty for a model without class condition."""
        return list(self.options["classes"]) if self.options["condition"]["kind"] == "class" else []

    def sample(
        self,
        classes: int | str | Sequence[int | str] | None = None,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        shape: Sequence[int] | None = None,
        prompts: str | Sequence[str | Sequence[str]] | None = None,
        negative: str | Sequence[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        scales: Mapping[str, float] | None = None,
        maps: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Images:
        """Images uint8 [n, H, W, C], or of a model of other depths (`values`) its dtype, in its unit; of a model of
        clips uint8 [n, T, H, W, C]. Image i has class i modulo the number of `classes` (a list, or one; default: all).

        shape: (height, width) in pixels, one of `shapes`; default: the first of them. Image i of a seed is a function
        of (seed, i, its class, the shape) alone: noise is drawn by image, and every batch is
        filled up to `batch_size`, so that `n` and the other classes change no bit. Another batch size is another shape
        of the same computation: equal up to rounding. prompts: captions, in turn as the classes are; those of
        pieces, "a hat AND a coat" or a list, are composed, a guidance term each; negative: one that
        guidance leads away from, in place of the empty one (or several, in turn). attributes: by name a value, or a
        list that images take in turn (of labels: a list of lists). maps: by spatial condition a picture (a path, a
        Pillow image, an array), or a list in turn. With any of these, no class is told unless one is given. What is not
        given is not told. scales: a guidance scale of a condition's own, by name (class, caption, an attribute's, a
        map's); `guidance` is that of all others together. `how`: grid, shift, guidance_kind, guidance_weak,
        guidance_interval, guidance_rescale, noise_left, as in the config's `evaluate`. Raises UserError for values that
        the model does not know, and NotFinite where they, or the weights, lead to no image.
        """
        request = self.request(
            classes, n, seed, steps, sampler, guidance, batch_size, shape, prompts, negative, attributes, scales, maps,
            **how,
        )  # fmt: skip
        return self.images(request)

    def images(self, request: dict[str, Any], first: int = 0) -> Images:
        """The images of a `request`, from number `first` on, uint8 [n, H, W, C]; the classes begin with that one's."""
        return np.concatenate(list(self._batches(request, first)))[: request["n"]]

    def texts(self, request: dict[str, Any], first: int = 0) -> list[str]:
        """The texts of a `request` to a model of text, from number `first` on: the most likely token in each place.
        UserError where the model is of images; NotFinite as of `sample`."""
        found: list[str] = []
        for z in self.latents(request, first):
            found += self._read(z, len(found), self._why(request), request["n"] - len(found))
        return found[: request["n"]]

    def encode_texts(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Normalised latents [n, C, l] (the posterior's mean, no noise) of texts, each cut off where it is too long.
        UserError where the model is of images."""
        parts = []
        for start in range(0, len(texts), batch_size):
            x = tokens.rows(self._of_text, texts[start : start + batch_size], self.autoencoder.length).tokens
            with torch.no_grad():
                mean = self.autoencoder.encode(torch.from_numpy(x).to(self.device)).float().chunk(2, dim=1)[0]
            parts.append(self.space.normalise(mean).cpu())
        return torch.cat(parts)

    def decode_texts(self, latents: Tensor, batch_size: int = 32) -> list[str]:
        """Texts of normalised latents [n, C, l]. Raises NotFinite."""
        starts = range(0, len(latents), batch_size)
        why = "the latents or the autoencoder's weights are bad"
        return [text for start in starts for text in self._read(latents[start : start + batch_size], start, why)]

    @property
    def _of_text(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("text: this model is of images; ask it for these")
        return self.tokenizer

    def _read(self, z: Tensor, start: int, why: str, count: int | None = None) -> list[str]:
        """Texts of latents of which the first `count` have to be finite."""
        tokenizer = self._of_text
        logits, sound = self.raw(z)  # [b, L, V]
        mind(sound[:count], start, why, "texts")
        return tokens.texts(tokenizer, logits.argmax(-1).cpu().numpy())

    def request(
        self,
        classes: int | str | Sequence[int | str] | None = None,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        shape: Sequence[int] | None = None,
        prompts: str | Sequence[str | Sequence[str]] | None = None,
        negative: str | Sequence[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        scales: Mapping[str, float] | None = None,
        maps: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> dict[str, Any]:
        """The arguments of `sample`, checked, with the defaults put in, as plain JSON values."""
        if isinstance(classes, (int, np.integer, str)):  # one, without its brackets
            classes = [classes]
        labels = class_numbers(classes, self.classes)
        chosen = {"sampler": sampler, "steps": steps, "guidance": guidance, "batch_size": batch_size, **how}
        filled = {**self.defaults, **{key: value for key, value in chosen.items() if value is not None}}
        if filled["grid"] != "shifted":  # the only grid that has one
            if chosen.get("shift") is not None:
                raise UserError(f"shift: {chosen['shift']} given, but the grid is {filled['grid']}; give grid shifted")
            filled["shift"] = None
        given = told.checked(self.options, prompts, negative, attributes, scales, maps)
        if not classes and {"prompts", "attributes", "maps"} & set(given):
            labels = []  # told something else, and no class
        least = max(len(labels) if classes is not None else 0, told.count(given))
        request: dict[str, Any] = {"n": n if n is not None else least or 16, "seed": seed, "classes": labels}
        if shape is not None:
            if tuple(shape) not in self.shapes:
                known = ", ".join(map(text, self.shapes))
                raise UserError(f"size: {'x'.join(map(str, shape))} (height x width) is none of this model's: {known}")
            request["shape"] = list(shape)
        for key, value in {**request, **filled}.items():
            if key in ("n", "steps", "batch_size") and (not isinstance(value, int) or value < 1):
                raise UserError(f"{key}: {value} given, expected a whole number of at least 1")
        if not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed: {seed} given, expected a whole number of at least 0")
        sampling.check({key: value for key, value in filled.items() if key != "batch_size"})
        students.check(self.options, filled, given)
        if filled["noise_left"] and self.tokenizer is None:
            raise UserError("noise_left: for decoders of text, which forgive noise, and this one is of images; give 0")
        terms = "scale" if given.get("scales") else "prompt: AND" if told.composes(given) else None
        if terms and filled["guidance_kind"] == "autoguidance":
            raise UserError(f"{terms}: autoguidance has one scale, `guidance`; give guidance_kind classifier_free")
        if filled["guidance"] != 1 and filled["guidance_kind"] == "autoguidance":
            self._weak_file(str(filled["guidance_weak"]))
        elif filled["guidance"] != 1 or terms:
            if not (told.names(self.options) and self.options["condition"].get("drop", 0) > 0):
                asked = terms or f"guidance: {filled['guidance']}"
                raise UserError(f"{asked} needs a model trained with `condition.drop` above 0; give 1")
        elif "negative" in given:
            raise UserError("negative: nothing is led away from it at guidance 1; give more, or a scale")
        return {**request, **given, **filled}

    def told(self, request: Mapping[str, Any], rows: range) -> tuple[list[Conditions], Conditions]:
        """What a request tells the images with these numbers, a list of one (of several where prompts are composed),
        and what stands for nothing, one row."""
        read = told.read(self.options, told.of_rows(request, rows), self.device, self.known)
        return told.composed(self.options, request, rows, self.device, read)

    def led(self, request: Mapping[str, Any], conditions: Sequence[Conditions], null: Conditions) -> Denoiser:
        """The denoiser under a request's guidance, to be called with `conditions[0]`: led away from `null`."""
        name = str(request["guidance_weak"])
        return sampling.led(self.network, lambda: self._weak(name), self.options, request, conditions, null)

    def encode(self, images: Images, batch_size: int = 32) -> Tensor:
        """Normalised latents [n, C, *sides] (the posterior's mean, no noise) of images [n, H, W, C], uint8 or as the
        model's `values` say, or of clips [n, T, H, W, C]. UserError for another dtype."""
        self._only_pixels()
        if images.dtype != (kind := np.dtype(self.values.dtype if self.values else np.uint8)):
            raise UserError(f"images of type {images.dtype}, but this model's are {kind}; give such images")
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = np.ascontiguousarray(np.moveaxis(images[start : start + batch_size], -1, 1))  # [b, C, (T,) H, W]
            x = torch.from_numpy(pixels) if self.values is None else self.values.tensor(pixels)
            x = floats(x.to(self.device))  # [0, 255] -> [-1, 1]
            with torch.no_grad():
                mean = self.autoencoder.encode(x).float().chunk(2, dim=1)[0]  # [b, 2C, *sides] -> [b, C, *sides]
            parts.append(self.space.normalise(mean).cpu())
        return torch.cat(parts)

    def decode(self, latents: Tensor, batch_size: int = 32) -> Images:
        """Images, as `sample` gives them, of normalised latents [n, C, *sides]. Raises NotFinite."""
        parts = []
        for start in range(0, len(latents), batch_size):
            images, sound = self._decoded(latents[start : start + batch_size])
            mind(sound, start, "the latents or the autoencoder's weights are bad")
            parts.append(images)
        return np.concatenate(parts)

    def shown(self, images: Images) -> Images:
        """8-bit pictures uint8 [n, H, W, 1 or 3] of images, of clips their frames side by side, for people."""
        return strips(images) if self.clip else images if self.values is None else self.values.shown(images)

    def pictures_only(self, what: str) -> None:
        """UserError for a model of other than images of 8 bits of gray or RGB, which is all that `what` knows."""
        self.only_images(what)
        if self.sound:  # whose spectrograms are pictures to all that decodes them
            raise UserError(f"{what}: is for models of images, and this one is of sound")
        if self.values is not None:
            name, made = self.about.get("name", "this model"), f"images of {self.channels} x {self.values.dtype}"
            raise UserError(f"{name}: makes {made}, and {what} knows 8-bit pictures only")

    def _decoded(self, latents: Tensor) -> tuple[Images, Tensor]:
        """Images [n, H, W, C], or clips, of latents [n, C, *sides], and which of them are all finite: bool [n]."""
        self._only_pixels()
        x, sound = self.raw(latents)
        if self.values is not None:  # what is not finite is told by `sound`
            return self.values.values(x.nan_to_num().permute(0, 2, 3, 1).cpu().numpy(), -1), sound
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()  # [b, C, (T,) H, W]
        return pixels.movedim(1, -1).cpu().numpy(), sound

    def only_images(self, verb: str) -> None:
        """UserError, by the name of the command that asks, for a model of other data than images."""
        if not getattr(self.autoencoder, "of_images", True):
            what = "text" if self.tokenizer is not None else "clips" if self.clip else "other data"
            raise UserError(f"{verb}: is for models of images, and this one is of {what}")

    def _only_pixels(self) -> None:
        if self.clip is None:
            self.only_images("images")

    def raw(self, latents: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """What the autoencoder decodes of normalised latents [n, C, *sides] (and `more` that its `decode` takes),
        float32 [n, ...] as its kind has it (images in about [-1, 1]), and of which of them all values are finite: bool
        [n]."""
        with torch.no_grad():
            x = self.autoencoder.decode(self.space.restore(latents.to(self.device)), *more).float()
        return x, latents.flatten(1).isfinite().all(1).cpu() & x.flatten(1).isfinite().all(1).cpu()

    def _batches(self, request: dict[str, Any], first: int) -> Iterator[Images]:
        size = request["batch_size"]
        for start, z in zip(range(0, request["n"], size), self.latents(request, first), strict=True):
            images, sound = self._decoded(z)
            mind(sound[: request["n"] - start], start, self._why(request))
            yield images

    @staticmethod
    def _why(request: Mapping[str, Any]) -> str:
        """What may be the matter where samples are not finite, in words."""
        guided = f"guidance is {request['guidance']:g}: give less" if request["guidance"] > 1 else "the weights are bad"
        return f"{guided}, or more steps ({request['steps']} were taken)"

    def latents(self, request: dict[str, Any], first: int = 0) -> Iterator[Tensor]:
        """Normalised latents [batch_size, C, *sides] of a `request`, batch by batch, from number `first` on; the last
        goes beyond n. What they decode to is another question (`raw`)."""
        size, shape = request["batch_size"], request.get("shape")
        sides = latent_sides(self.autoencoder, shape) if shape and not self.clip else self.sides[0]
        read: Mapping[str, Embedding] = {}  # of the batch before: a negative prompt is in each
        for start in range(0, request["n"], size):
            rows = range(start, start + size)
            read = told.read(self.options, told.of_rows(request, rows), self.device, {**self.known, **read})
            conditions, null = told.composed(self.options, request, rows, self.device, read)
            yield sampling.latents(
                self.network,
                lambda: self._weak(str(request["guidance_weak"])),
                self.options,
                request,
                range(first + rows.start, first + rows.stop),
                conditions,
                null,
                self.device,
                sides,
            )

    def _weak_file(self, name: str) -> Path:
        if name not in self.averages:
            kept = ", ".join(sorted(self.averages)) or "none"
            raise UserError(f"guidance_weak: weights {name!r} are not kept with this model; kept: {kept}")
        return self.averages[name]

    def _weak(self, name: str) -> nn.Module:
        """The network with other weights of the same run; read once."""
        if name not in self._loaded:
            with torch.random.fork_rng(devices=[]):  # its first weights are of no use
                network = build_network(self.options)
            adapters.load(network, self._weak_file(name), self.options, self.base)
            self._loaded[name] = network.eval().to(self.device)
        return self._loaded[name]


def generator(
    options: dict[str, Any],
    autoencoder: nn.Module,
    network: nn.Module,
    space: LatentSpace,
    device: torch.device,
    defaults: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    averages: Mapping[str, Path] | None = None,
    known: Mapping[str, Embedding] | None = None,
    base: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> Generator:
    """A generator of networks at hand (in training, too); nothing is copied."""
    filled = {**DEFAULTS, **students.defaults(options), **(defaults or {})}
    kept = {"about": about or {}, "averages": averages or {}, "known": known or {}}
    copies: dict[str, Any] = {name: dict(values) for name, values in kept.items()}
    if device.type == "cpu" and getattr(autoencoder, "of_images", True):  # its convolutions are a quarter faster so
        autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Generator(options, autoencoder, network, space, device, filled, base=base, tokenizer=tokenizer, **copies)
