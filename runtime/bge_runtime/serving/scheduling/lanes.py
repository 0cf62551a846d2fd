"""A queue of texts, sorted by length, whose oldest text is always in the next batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bge_runtime.serving.scheduling.work import BatchKey, Work

if TYPE_CHECKING:
    from bge_runtime.serving.scheduling.execution import EngineGroup


class Entry(NamedTuple):
    """A text that waits; entries sort by length, then by age.

    Attributes:
        length: Its tokens.
        number: Smaller for an older text; no two are the same.
        work: Its request.
        row: Its position there.
    """

    length: int
    number: int
    work: Work
    row: int


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """Limits of a batch.

    Attributes:
        tokens: Maximum tokens, padding included; a longer text is a batch of its own.
        rows: Maximum texts.
        padding: Maximum padding tokens.
        longest_padded: Longest text that may be batched with shorter ones.
    """

    tokens: int
    rows: int
    padding: int
    longest_padded: int


class Lane:
    """Texts that wait for an engine. Not safe for several threads; the scheduler has a lock.

    Texts are sorted by length, since a batch of similar texts has little padding. A batch is built
    around the oldest text of a request whose turn it is, so that none waits for ever.

    Attributes:
        tokens: Tokens that wait.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.tokens = 0
        self._tokens_of: Counter[EngineGroup] = Counter()
        self._number = 0
        self._sorted: dict[BatchKey, list[Entry]] = {}
        self._by_age: deque[tuple[Work, deque[Entry]]] = deque()

    def __len__(self) -> int:
        """Return the number of texts that wait."""
        return sum(map(len, self._sorted.values()))

    @property
    def seconds(self) -> float:
        """Seconds in which all that waits is computed; 0 as long as nothing was measured."""
        return sum(
            tokens / engines.tokens_per_s
            for engines, tokens in list(self._tokens_of.items())
            if engines.tokens_per_s
        )

    @property
    def works(self) -> list[Work]:
        """The requests whose texts wait, oldest first."""
        return [work for work, _ in self._by_age if work.queued_tokens and not work.is_over]

    @property
    def unanswered(self) -> list[Work]:
        """The same, and at least those of which texts were taken last: all that a bug may lose."""
        return [work for work, _ in self._by_age if not work.is_over]

    def add(self, work: Work) -> None:
        """Add all texts of a request."""
        order = sorted(range(len(work.tokens)), key=lambda row: -len(work.tokens[row]))
        entries = deque(
            Entry(len(work.tokens[row]), self._number + place, work, row)
            for place, row in enumerate(order)
        )
        self._number += len(order)
        self._by_age.append((work, entries))
        waiting = self._sorted.setdefault(work.key, [])
        if len(entries) > 32:
            waiting.extend(entries)
            waiting.sort()
        else:
            for entry in entries:
                insort(waiting, entry)
        self.tokens += work.queued_tokens
        self._tokens_of[work.key.engines] += work.queued_tokens

    def remove(self, work: Work) -> None:
        """Remove the texts of a request that are in no batch yet, if any are here."""
        waiting = self._sorted.get(work.key)
        if waiting is None or not work.queued_tokens:
            return
        before = len(waiting)
        waiting[:] = [entry for entry in waiting if entry.work is not work]
        if len(waiting) < before:
            self._took(work, work.queued_tokens)
            self._forget_empty(work.key)

    def oldest(self, accepts: Callable[[Work], bool]) -> Work | None:
        """Return the oldest request with texts that wait, of those that are accepted."""
        while self._by_age and not self._by_age[0][0].queued_tokens:
            self._by_age.popleft()
        for work, _ in self._by_age:
            if work.queued_tokens and accepts(work):
                return work
        return None

    def move_to_end(self, leader: Work) -> None:
        """Let all other requests have their turn before this one has its next."""
        for place, (work, _) in enumerate(self._by_age):
            if work is leader:
                entries = self._by_age[place]
                del self._by_age[place]
                self._by_age.append(entries)
                return

    def take(self, leader: Work, size: BatchSize) -> list[Entry]:
        """Take a batch around the oldest text of a request, and return its texts.

        Args:
            leader: A request with texts that wait.
            size: Limits of the batch.
        """
        waiting = self._sorted[leader.key]
        low = self._position_of_oldest(leader, waiting)
        high, padding = low + 1, 0
        while high - low < size.rows:
            longest = waiting[high - 1].length
            # Neighbors by the padding that they would cost: the next shorter, the next longer.
            choices = []
            if low > 0:
                choices.append((longest - waiting[low - 1].length, longest, -1))
            if high < len(waiting):
                longer = waiting[high].length
                choices.append(((longer - longest) * (high - low), longer, 1))
            fitting = [
                (cost, side)
                for cost, length, side in choices
                if (high - low + 1) * length <= size.tokens
                and padding + cost <= (size.padding if length <= size.longest_padded else 0)
            ]
            if not fitting:
                break
            cost, side = min(fitting)
            padding += cost
            low, high = (low - 1, high) if side < 0 else (low, high + 1)
        taken = waiting[low:high]
        del waiting[low:high]
        for entry in taken:
            self._took(entry.work, entry.length)
        self._forget_empty(leader.key)
        return taken

    def _position_of_oldest(self, leader: Work, waiting: list[Entry]) -> int:
        entries = next(entries for work, entries in self._by_age if work is leader)
        while True:
            at = bisect_left(waiting, entries[0])
            if at < len(waiting) and waiting[at].number == entries[0].number:
                return at
            entries.popleft()  # an older text took it along

    def _took(self, work: Work, tokens: int) -> None:
        work.queued_tokens -= tokens
        self.tokens -= tokens
        self._tokens_of[work.key.engines] -= tokens

    def _forget_empty(self, key: BatchKey) -> None:
        if not self._sorted[key]:
            del self._sorted[key]
