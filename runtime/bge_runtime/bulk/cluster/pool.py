"""Gives shards to actors, one at a time, and replaces the actors that are lost."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bge_runtime.bulk.cluster.actor import Described, Failure
from bge_runtime.bulk.vectors import ModelDescription
from bge_runtime.errors import BgeError

logger = logging.getLogger(__name__)

_POLL_S = 1.0
"""How often the calling thread looks for signals."""

_CLOSE_S = 5.0
"""Seconds for actors to delete their temporary files."""

_ATTEMPTS = 4
"""How often a shard, or the start of an actor, may end with the loss of its process."""


class ActorPool:
    """The actors of a job.

    An actor that was lost, alone or with its node, is replaced by a new one, and its shard goes
    back to the front of the queue.
    """

    def __init__(self, start: Callable[[], Any], most: int) -> None:
        """Start the first actor.

        Args:
            start: Starts an actor.
            most: Most actors at a time.
        """
        self._start, self._most = start, most
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int]] = {}
        self._queue: deque[int] = deque()
        self._lost_starts = 0
        self._lost_shards: Counter[int] = Counter()
        self._add()

    def describe(self) -> ModelDescription:
        """Return the model, as it runs on the first node that has opened it.

        Raises:
            BgeError: If it cannot be opened.
        """
        first: Described | None = None
        while first is None:
            for ref in self._wait():
                first = self._started(ref) or first
            if not self._starting:
                self._add()
        self._first = first
        return first.model

    def run(self, shards: Sequence[int], work: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Compute shards, and yield each with its record, in the order in which they are ready.

        Args:
            shards: Numbers of the shards.
            work: A reference to what the shards share.

        Raises:
            BgeError: The error of an actor, or if a shard or an actor is lost again and again.
        """
        self._queue.extend(shards)
        while self._queue or self._running:
            while self._queue and self._idle:
                actor, shard = self._idle.pop(), self._queue.popleft()
                self._running[actor.run.remote(work, shard)] = actor, shard
            wanted = min(self._most, len(self._queue) + len(self._running))
            for _ in range(wanted - len(self._running) - len(self._starting)):
                self._add()
            for ref in self._wait():
                if ref in self._starting:
                    self._check_same(self._started(ref))
                else:
                    yield from self._finished(ref)
            self._release()

    def close(self) -> None:
        """End all actors; those without a shard delete their temporary files first."""
        import ray

        actors = [actor for actor, _ in self._running.values()] + list(self._starting.values())
        ray.wait(
            [actor.close.remote() for actor in self._idle] or [ray.put(None)], timeout=_CLOSE_S
        )
        for actor in (*actors, *self._idle):
            ray.kill(actor)
        self._starting, self._idle, self._running = {}, [], {}

    def _add(self) -> None:
        actor = self._start()
        self._starting[actor.describe.remote()] = actor

    def _wait(self) -> Sequence[Any]:
        """Return the calls that have ended; none if none does for a while."""
        import ray

        done, _ = ray.wait([*self._running, *self._starting], timeout=_POLL_S)
        return list(done)

    def _started(self, ref: Any) -> Described | None:
        """Return what an actor that has opened its model says of it; None if it was lost."""
        actor = self._starting.pop(ref)
        found, lost = _result(ref)
        if lost is not None:
            self._lost_starts += 1
            if self._lost_starts >= _ATTEMPTS:
                raise BgeError(
                    f"{_ATTEMPTS} actors in a row were lost while they opened the model: {lost}"
                ) from lost
            logger.warning("an actor was lost while it opened the model: %s", lost)
            return None
        self._lost_starts = 0
        self._idle.append(actor)
        described: Described = found
        return described

    def _check_same(self, described: Described | None) -> None:
        """Check that an actor computes what the first one computes.

        Raises:
            BgeError: If its model, or the graph that its node selects, is another one.
        """
        if described is None:
            return
        made_with, other_made_with = self._first.model.made_with, described.model.made_with
        if made_with != other_made_with:
            logger.warning(
                "node %s computes with %s, and node %s with %s: vectors may differ in their last "
                "bits", described.node, other_made_with, self._first.node, made_with,
            )  # fmt: skip
        if replace(described.model, made_with=made_with) == self._first.model:
            return
        first, other = self._first.model.document, described.model.document
        differences = [
            f"{name} {other.get(name)!r} and not {first.get(name)!r}"
            for name in {**first, **other}
            if first.get(name) != other.get(name)
        ]
        raise BgeError(
            f"node {described.node} runs the model otherwise than node {self._first.node}: "
            f"{', '.join(differences) or 'its options differ'}. Give all nodes the same bundle, "
            "and set precision and engine in model_options"
        )

    def _finished(self, ref: Any) -> Iterator[tuple[int, Any]]:
        """Yield the record of a shard; put the shard back if its actor was lost."""
        actor, shard = self._running.pop(ref)
        record, lost = _result(ref)
        if lost is None:
            self._idle.append(actor)
            yield shard, record
            return
        self._lost_shards[shard] += 1
        if self._lost_shards[shard] >= _ATTEMPTS:
            raise BgeError(
                f"{_ATTEMPTS} actors were lost while they computed shard {shard}; they may have "
                f"run out of memory, which Ray's logs tell. The last one: {lost}"
            ) from lost
        logger.warning("an actor was lost, and another one computes its shard %d: %s", shard, lost)
        self._queue.appendleft(shard)

    def _release(self) -> None:
        """End actors for which there is no shard left, so that a cluster may shrink."""
        if self._queue:
            return
        import ray

        for actor in self._idle:
            actor.close.remote()  # it ends after that, since nothing refers to it
        for actor in self._starting.values():
            ray.kill(actor)
        self._idle, self._starting = [], {}


def _result(ref: Any) -> tuple[Any, Exception | None]:
    """Return the result of a call, or the error by which it was lost.

    Raises:
        Exception: What the call raised.
    """
    import ray
    from ray.exceptions import RayError

    try:
        found = ray.get(ref)
    except RayError as error:
        return None, error
    if isinstance(found, Failure):
        raise found.error
    return found, None
