"""A cache of keys and values for the prefixes that many texts share.

Queries of a decoder follow an instruction, or an instruction and examples: hundreds of tokens that
are the same each time, and are computed once. Prefixes are compared as tokens, not as text, because
a tokenizer may join the end of a prefix with what follows.
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
"""Minimum tokens of a prefix: about what starting a run costs."""

MAX_ENTRIES = 256
"""Maximum prefixes in a cache. A lookup compares the tokens with each of them."""

_MB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PrefixCacheStats:
    """Statistics of a prefix cache.

    Attributes:
        hits: Number of times that a cached prefix was used, once for every 2,048 texts of a call.
        misses: Number of times that a prefix was computed.
        tokens_saved: Tokens that did not have to be computed.
        entries: Prefixes in the cache.
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
    """A prefix that some texts share.

    Attributes:
        length: Tokens of each text that do not have to be computed.
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
        """Return the keys and values of its first tokens, which do not depend on the others."""
        if length == len(self.tokens):
            return self.past
        return [np.ascontiguousarray(array[:, :, :length]) for array in self.past]


_Key = tuple[str, bytes]


class PrefixCache:
    """A bounded cache of prefixes of one model, for all its devices and threads."""

    def __init__(self, capacity_bytes: int) -> None:
        """Create an empty cache.

        Args:
            capacity_bytes: Maximum memory of its prefixes; 0 reuses none.
        """
        self._capacity = capacity_bytes
        self._forget()
        self.reset_after_fork()

    @property
    def stats(self) -> PrefixCacheStats:
        """Statistics since the cache was created or cleared."""
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
        """Free the memory, and reset the statistics."""
        with self._lock:
            self._forget()

    def __reduce__(self) -> tuple[type[PrefixCache], tuple[int]]:
        return PrefixCache, (self._capacity,)  # a copy is empty

    def reset_after_fork(self) -> None:
        """Replace the locks, which another thread of the parent may have held.

        The entries stay: each change of the table is a single operation, done or not done.
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
        """Return the prefix that texts share, computing it unless it is cached.

        At least one token of each text remains to be computed. A cached prefix is used as it is if
        it covers nearly as much: a few more tokens ("what is ...") are not worth a run.

        Args:
            engines: Engines that will run the texts.
            texts: Token ids of each text; at least one.
            expected: Tokens that the texts of later calls will probably begin with.

        Returns:
            The prefix; None if there is none, or none that is worth it.

        Raises:
            InferenceError: If an engine fails.
        """
        token_bytes = engines[0].past_token_bytes
        # Graphs for TensorRT accept no prefix, and may share the work with one that does.
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
                # Another precision has other values, which must not be used here.
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
        """Return keys and values of ``wanted`` tokens, or of about as many that are cached.

        Args:
            engine: Engine to compute with.
            head: Tokens to look up.
            wanted: Number of tokens that are worth computing.
            count: Texts that use the prefix, for the statistics.
            slack: A cached prefix is used if it is shorter by less than this.
        """
        fewest = max(wanted - slack + 1, MIN_TOKENS)
        known = self._find(engine, head, fewest, count)
        if known is not None:
            return known
        if wanted < MIN_TOKENS:
            return None
        # One thread at a time: a second one finds what the first one has computed.
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
        """Return the longest cached prefix of some tokens, of at least ``fewest``."""
        with self._lock:
            best, whole = (0, _NO_KEY), (0, _NO_KEY)
            for key, entry in self._entries.items():
                if key[0] == engine.info.variant:
                    length = _common(head, entry.tokens)
                    best = max(best, (length, key))
                    if length == len(entry.tokens):
                        whole = max(whole, (length, key))
            # Part of an entry has to be copied; a whole one does not.
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
    """Return the number of tokens that two rows share at their start."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
