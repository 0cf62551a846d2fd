"""Generate paragraphs to measure speed on.

Their lengths are spread evenly over the orders of magnitude, as in real collections: from 4 words
to 500 in a geometric series. Their order is fixed and arbitrary, since callers do not sort either.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bge_bench.errors import BenchError

_Item = TypeVar("_Item")

PARAGRAPHS = 200
"""Number of paragraphs of the default corpus."""

_SHORTEST_WORDS = 4
_LONGEST_WORDS = 500


@dataclass(frozen=True)
class _Topic:
    who: tuple[str, ...]
    does: tuple[str, ...]
    what: tuple[str, ...]
    where: tuple[str, ...]


_TOPICS = (
    _Topic(
        ("the lock keeper", "an old barge", "the tide table", "each new pilot", "the dredger crew"),
        ("measured", "waited for", "wrote down", "steered around", "quietly blamed"),
        ("the spring flood", "a broken sluice", "two sunken piles", "the grain fleet", "low water"),
        ("below the weir", "at the river mouth", "beside the customs quay", "in thick fog"),
    ),
    _Topic(
        (
            "the pastry cook",
            "her youngest apprentice",
            "the oven",
            "a sack of rye",
            "the night shift",
        ),
        ("folded", "burned", "weighed out", "forgot", "sold", "improved"),
        ("forty trays of rolls", "the sour starter", "a plum cake", "salted butter", "every crust"),
        ("before sunrise", "behind the market hall", "on the cold marble", "without a recipe"),
    ),
    _Topic(
        (
            "the compiler",
            "a nervous intern",
            "our scheduler",
            "the release branch",
            "one unit test",
        ),
        ("rejected", "cached", "rewrote", "silently dropped", "profiled", "rolled back"),
        ("a circular import", "the slow query", "half of the index", "an unsigned counter"),
        ("in production", "on the build server", "under heavy load", "after the migration"),
    ),
    _Topic(
        (
            "the glaciologist",
            "a drill core",
            "the weather mast",
            "the second expedition",
            "a sledge",
        ),
        ("recorded", "outlasted", "crossed", "revealed", "dated", "missed"),
        (
            "eight hundred winters",
            "a layer of ash",
            "trapped air",
            "the melt season",
            "drifting snow",
        ),
        ("on the northern plateau", "above the moraine", "in polar darkness", "near the crevasse"),
    ),
    _Topic(
        ("the second violin", "a patient teacher", "the choir", "the bronze bell", "an amateur"),
        ("rehearsed", "tuned", "drowned out", "transposed", "remembered", "applauded"),
        ("the slow movement", "a minor seventh", "an unfinished quartet", "the last refrain"),
        ("in the empty hall", "after the interval", "from memory", "under the dome"),
    ),
    _Topic(
        ("the tenant", "a court clerk", "the insurer", "one witness", "the revised statute"),
        ("disputed", "signed", "mislaid", "quoted", "appealed against", "upheld"),
        ("the third clause", "a deposit of nine hundred", "the notice period", "an earlier ruling"),
        ("before the tribunal", "in written form", "within fourteen days", "on page six"),
    ),
    _Topic(
        (
            "the beekeeper",
            "a late frost",
            "the orchard",
            "a neighbour's goat",
            "the seed catalogue",
        ),
        ("ruined", "promised", "sheltered", "pruned", "devoured", "pollinated"),
        ("the early pears", "six straight rows of beans", "an unnamed apple", "the young hives"),
        ("along the south wall", "during a dry May", "up on the terraces", "by the compost"),
    ),
    _Topic(
        ("the night nurse", "a careful trial", "the new vaccine", "the clinic", "the dosage chart"),
        ("halved", "postponed", "explained", "monitored", "reported", "prevented"),
        ("the number of relapses", "a mild fever", "several side effects", "the waiting list"),
        ("among older patients", "on the third ward", "over eighteen months", "in rural districts"),
    ),
)

_COMMON = (
    "time year way day man thing life child world school state family group country hand part "
    "place case week company system work number night point home water room mother area money "
    "story fact month lot right study book eye job word business side kind head house service "
    "friend father power hour game line end law car city name team body back face door art war"
)
"""Words that are one token each in most vocabularies."""

_LINKS = ("", "", "", "Still,", "By then", "As a rule,", "Once more", "That week", "In the end")


def paragraphs(count: int = PARAGRAPHS) -> list[str]:
    """Return a generated corpus, always the same for the same count.

    Args:
        count: Number of paragraphs, at least 2.
    """
    chance = random.Random(count)  # noqa: S311  # no secret
    lengths = lengths_words(count)
    chance.shuffle(lengths)
    return [_paragraph(chance, words) for words in lengths]


def short_texts(count: int, *, words: int) -> list[str]:
    """Return generated texts of ``words`` words each, with few duplicates."""
    chance = random.Random(words)  # noqa: S311  # no secret
    return [_paragraph(chance, words) for _ in range(count)]


def texts_of_every_length(most: int = 510) -> list[str]:
    """Return a text for each number of words from 0 to ``most``, with about one token a word."""
    chance, common = random.Random(most), _COMMON.split()  # noqa: S311  # no secret
    return [" ".join(chance.choices(common, k=words)) for words in range(most + 1)]


def lengths_words(count: int) -> list[int]:
    """Return the lengths of ``count`` paragraphs in words, shortest first."""
    ratio = _LONGEST_WORDS / _SHORTEST_WORDS
    return [round(_SHORTEST_WORDS * ratio ** (index / (count - 1))) for index in range(count)]


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file with one text a line, without blank lines.

    Raises:
        BenchError: If it is not UTF-8, or has fewer than two different texts.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path} as UTF-8 text: {error}") from error
    texts = [line for line in lines if line.strip()]
    if len(set(texts)) < 2:
        raise BenchError(
            f"{path} holds {len(set(texts))} different texts, one a line; a comparison needs two"
        )
    return texts


def spread_sample(texts: Sequence[_Item], count: int) -> list[_Item]:
    """Return at most ``count`` of what is given, evenly spaced over all."""
    count = min(count, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def _paragraph(chance: random.Random, words: int) -> str:
    topic = chance.choice(_TOPICS)
    written: list[str] = []
    for sentence in _sentences(chance, topic):
        written += sentence
        if len(written) >= words:
            break
    return " ".join(written[:words]).rstrip(".,") + "."


def _sentences(chance: random.Random, topic: _Topic) -> Iterator[list[str]]:
    while True:
        main = [chance.choice(part) for part in (topic.who, topic.does, topic.what)]
        aside = [f"and {chance.choice(topic.who)}", chance.choice(topic.does)]
        ends = [chance.choice(topic.what), chance.choice(topic.where)]
        short = chance.random() < 0.5
        parts = [chance.choice(_LINKS), *main, *(ends[1:] if short else [*aside, *ends])]
        sentence = " ".join(part for part in parts if part)
        yield f"{sentence[0].upper()}{sentence[1:]}.".split(" ")
