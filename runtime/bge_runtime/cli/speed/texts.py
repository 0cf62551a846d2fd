"""The texts of ``bge-runtime doctor --speed``: always the same, of mixed lengths."""

from __future__ import annotations

import random

QUERY = "how much protein should a female eat"
"""The query that is embedded alone, or that pairs of a reranker have."""

TEXTS = 64
"""How many texts there are."""

_SHORTEST, _LONGEST = 6, 320
"""Words of a text. The longest has fewer than 512 tokens, where models cut by default."""

_WORDS = """
a about after all also an and animals are as at be because before between body but by can city
cells children common different during each early energy engine family first food for form found
from general government group has have heat high history however if important in increase into is
it its known language large later level life light made many may mean more most much music national
nature new not number of often on one only or other over people period place power process protein
public rather research result river same school science several should small some species state
still such system temperature than that the their them these they this those through time to two
under university up use used usually very war was water way well were when where which while
with within without women word work world would year
"""


def sample_texts() -> list[str]:
    """Return `TEXTS` texts of common English words, as long as sentences and paragraphs are.

    Lengths are drawn from a log-normal distribution, half of them above 60 words.
    """
    chance = random.Random(0)  # noqa: S311  # the same for everyone
    words = _WORDS.split()
    lengths = [round(chance.lognormvariate(4.1, 0.9)) for _ in range(TEXTS)]
    return [
        " ".join(chance.choices(words, k=min(max(length, _SHORTEST), _LONGEST)))
        for length in lengths
    ]
