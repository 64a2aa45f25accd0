"""Figures of sets of texts by their words: entropy, distinct n-grams, n-grams copied from training. Lists of words in,
numbers out.

Entropy and distinct n-grams depend on how many words there are: sets that are compared are first cut to equally many
(`as_many_words`). Perplexity alone is easily gamed by repetition, so these stand beside it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
Words = list[str]


def words_of(text: str) -> Words:
    """Words and marks of a text, in small letters."""
    return WORD.findall(text.lower())


def as_many_words(sets: Sequence[Sequence[Words]]) -> list[list[Words]]:
    """The sets, each cut off behind as many words as the smallest has in all."""
    least = min(sum(map(len, texts)) for texts in sets)
    found = []
    for texts in sets:
        cut, left = [], least
        for words in texts:
            cut.append(words[:left])
            left -= len(cut[-1])
        found.append([words for words in cut if words])
    return found


def entropy(texts: Iterable[Words]) -> float:
    """-sum p log2 p over the words of all texts, p their shares: bits. 0 where there are none."""
    counts = Counter(word for words in texts for word in words)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values()) + 0.0


def ngrams(words: Words, n: int) -> Iterator[tuple[str, ...]]:
    """Each run of n words, in order."""
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct(texts: Iterable[Words], n: int = 2) -> float:
    """Share of the n-grams that are different ones (Li et al. 2016, "A Diversity-Promoting Objective Function for
    Neural Conversation Models"); NaN where no text has n words."""
    found = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(found)) / len(found) if found else math.nan


def copied(texts: Iterable[Words], training: set[int], n: int = 8) -> float:
    """Share of the n-grams of all texts that are in `training` (`known`); NaN where no text has n words."""
    found = [hash(gram) in training for words in texts for gram in ngrams(words, n)]
    return sum(found) / len(found) if found else math.nan


def classes_right(
    train: Sequence[str], labels: Sequence[int], sets: Mapping[str, tuple[Sequence[str], Sequence[int]]]
) -> dict[str, float]:
    """Share of the texts of each set (texts, classes) that a classifier of words puts into their class: complement
    naive Bayes (Rennie et al. 2003) over counts of words, trained on `train`. ValueError where that has one class."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import ComplementNB

    if len(set(labels)) < 2:
        raise ValueError("the training passages are of one class")
    count, bayes = CountVectorizer(analyzer=words_of), ComplementNB()
    bayes.fit(count.fit_transform(train), labels)
    return {
        name: float(np.mean(bayes.predict(count.transform(texts)) == np.asarray(given)))
        for name, (texts, given) in sets.items()
    }


def known(texts: Iterable[Words], n: int = 8) -> set[int]:
    """The n-grams of all texts, each as Python's 64-bit hash: of this process alone."""
    return {hash(gram) for words in texts for gram in ngrams(words, n)}
