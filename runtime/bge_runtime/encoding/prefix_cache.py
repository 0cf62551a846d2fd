"""Keys and values of what many texts begin with, kept from call to call.

Queries of a decoder stand behind an instruction, or behind an instruction and examples:
hundreds of tokens that are the same each time. They are run once. What counts is the tokens,
never the text they were made of, so that a tokenizer may do at the seam what it likes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding.prefill import Past, prefill
from bge_runtime.engines import Engine

MIN_TOKENS = 16
"""Fewest tokens that are worth a run of their own: about what starting a run costs."""

MAX_ENTRIES = 256
"""Most prefixes of a cache. Looking one up compares the tokens with each of them."""

_MB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PrefixCacheStats:
    """What a prefix cache has done so far, and what it holds.

    Attributes:
        hits: Times that a known prefix served a call, or 2,048 texts of a longer one.
        misses: Times that one was computed.
        tokens_saved: Tokens that were not run.
        entries: Prefixes that are kept.
        size_bytes: Memory that they take.
        capacity_bytes: Memory that they may take; 0 if prefixes are not reused.
    """

    hits: int
    misses: int
    tokens_saved: int
    entries: int
    size_bytes: int
    capacity_bytes: int

    def __str__(self) -> str:
        if not self.capacity_bytes:
            return "prefixes are not reused"
        return (
            f"{self.tokens_saved:,} tokens saved; {self.hits} hits, {self.misses} misses; "
            f"{self.entries} prefixes in {self.size_bytes / _MB:,.1f} of "
            f"{self.capacity_bytes / _MB:,.0f} MB"
        )


class SharedPrefix(NamedTuple):
    """What some texts have in common.

    Attributes:
        length: Tokens of each text that need not be run.
        pasts: Their keys and values, by name of the engine's variant.
    """

    length: int
    pasts: Mapping[str, Past]


class _Entry(NamedTuple):
    tokens: NDArray[np.int64]
    past: Past

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.past)

    def first(self, length: int) -> Past:
        """Give those of its first tokens, which do not depend on the ones behind them."""
        if length == len(self.tokens):
            return self.past
        return [np.ascontiguousarray(array[:, :, :length]) for array in self.past]


_Key = tuple[str, bytes]


class PrefixCache:
    """A bounded cache of prefixes of one model, for all its devices and threads."""

    def __init__(self, capacity_bytes: int) -> None:
        """Make an empty cache.

        Args:
            capacity_bytes: Most memory that its prefixes take; 0 reuses none.
        """
        self._capacity = capacity_bytes
        self._forget()
        self.reset_after_fork()

    @property
    def stats(self) -> PrefixCacheStats:
        """What it has done so far, and what it holds."""
        with self._lock:
            return PrefixCacheStats(
                hits=self._hits,
                misses=self._misses,
                tokens_saved=self._saved,
                entries=len(self._entries),
                size_bytes=self._size_bytes(),
                capacity_bytes=self._capacity,
            )

    def __repr__(self) -> str:
        return f"<PrefixCache: {self.stats}>"

    def clear(self) -> None:
        """Free the memory, and count anew."""
        with self._lock:
            self._forget()

    def __reduce__(self) -> tuple[type[PrefixCache], tuple[int]]:
        return PrefixCache, (self._capacity,)  # a copy begins empty

    def reset_after_fork(self) -> None:
        """Make new locks: another thread of the parent may have held the old ones.

        What is kept stays: a change is one operation on the table, done or not done.
        """
        self._lock = threading.Lock()
        self._computing = threading.Lock()

    def _forget(self) -> None:
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._hits = self._misses = self._saved = 0

    def _size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def share(
        self,
        engines: Sequence[Engine],
        texts: Sequence[NDArray[np.int64]],
        expected: NDArray[np.int64] | None = None,
    ) -> SharedPrefix | None:
        """Find what texts begin with alike, and compute it unless it is known.

        At least one token of each text is left to run. A prefix that is known is taken as it
        is where it covers nearly as much: not every accident ("what is ...") is worth a run.

        Args:
            engines: Engines that will run the texts.
            texts: Token ids of each text; at least one.
            expected: Tokens that texts of further calls will begin with, as far as theirs
                are the same.

        Returns:
            The prefix; None if there is none, or none worth it.

        Raises:
            InferenceError: If an engine fails.
        """
        token_bytes = engines[0].past_token_bytes
        # TensorRT's graphs take none, and may share the work with one that does.
        if not self._capacity or not all(engine.past_token_bytes for engine in engines):
            return None
        most = min(min(map(len, texts)) - 1, self._capacity // token_bytes)
        head = texts[0][:most]
        for tokens in texts[1:]:
            if len(head) < MIN_TOKENS:
                return None
            head = head[: _common(head, tokens)]
        wanted = 0 if expected is None else _common(head, expected)
        if len(texts) > 1 and len(head) - wanted >= MIN_TOKENS:
            wanted = len(head)
        found = self._past(engines[0], head, wanted, count=len(texts))
        if found is None:
            return None
        length, past = found
        pasts = {engines[0].info.variant: past}
        for engine in engines[1:]:
            if engine.info.variant not in pasts:
                # Another precision has other values, and must not stand in for these.
                other = self._past(engine, head[:length], length, slack=1)
                assert other is not None
                pasts[engine.info.variant] = other[1]
        return SharedPrefix(length, pasts)

    def _past(
        self,
        engine: Engine,
        head: NDArray[np.int64],
        wanted: int,
        *,
        count: int = 0,
        slack: int = MIN_TOKENS,
    ) -> tuple[int, Past] | None:
        """Get keys and values of ``wanted`` tokens, or of about as many that are known.

        Args:
            engine: Engine to compute with.
            head: Tokens to look up.
            wanted: How many of them are worth computing.
            count: Texts that they save, for the statistics.
            slack: A known prefix will do that is shorter by less than this.
        """
        fewest = max(wanted - slack + 1, MIN_TOKENS)
        known = self._find(engine, head, fewest, count)
        if known is not None:
            return known
        if wanted < MIN_TOKENS:
            return None
        # One at a time: whoever comes second finds what the first one has computed.
        with self._computing:
            known = self._find(engine, head, fewest, count)
            if known is not None:
                return known
            start, past = self._longest(engine, head[:wanted]) or (0, None)
            tokens = head[:wanted].copy()
            entry = _Entry(tokens, prefill(engine, tokens[start:], past))
            with self._lock:
                self._store(engine, entry)
                self._misses += 1
                self._saved += max(0, count * wanted - (wanted - start))
            return wanted, entry.past

    def _find(
        self, engine: Engine, head: NDArray[np.int64], fewest: int, count: int
    ) -> tuple[int, Past] | None:
        found = self._longest(engine, head, fewest)
        if found is not None:
            with self._lock:
                self._hits += 1
                self._saved += count * found[0]
        return found

    def _longest(
        self, engine: Engine, head: NDArray[np.int64], fewest: int = MIN_TOKENS
    ) -> tuple[int, Past] | None:
        """Find the entry that has most of some tokens, and at least ``fewest``."""
        with self._lock:
            best, whole = (0, _NO_KEY), (0, _NO_KEY)
            for key, entry in self._entries.items():
                if key[0] == engine.info.variant:
                    length = _common(head, entry.tokens)
                    best = max(best, (length, key))
                    if length == len(entry.tokens):
                        whole = max(whole, (length, key))
            # A part of an entry has to be copied out of it.
            if whole[0] >= fewest and best[0] - whole[0] < MIN_TOKENS:
                best = whole
            length, key = best
            if length < fewest:
                return None
            self._entries.move_to_end(key)
            entry = self._entries[key]
        return length, entry.first(length)

    def _store(self, engine: Engine, entry: _Entry) -> None:
        self._entries[engine.info.variant, entry.tokens.tobytes()] = entry
        while len(self._entries) > MAX_ENTRIES or self._size_bytes() > self._capacity:
            self._entries.popitem(last=False)


_NO_KEY: _Key = ("", b"")


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Count the tokens that two rows begin with alike."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
