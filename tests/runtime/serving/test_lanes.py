"""The queue of texts: nothing lost, nothing twice, the oldest always in the next batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.serving.scheduling import BatchKey, Work
from bge_runtime.serving.scheduling.lanes import BatchSize, Lane

ANY_SIZE = BatchSize(tokens=64, rows=8, padding=16, longest_padded=32)
MODELS: list[Any] = [object(), object()]


def make_work(lengths, *, model=0, outputs=("dense",)):
    tokens = [np.zeros(length, dtype=np.int64) for length in lengths]
    key = BatchKey(MODELS[model], outputs)
    return Work(key, tokens, None, bulk=False, on_done=lambda _: None)


def take(lane, size=ANY_SIZE, accepts=lambda _: True):
    leader = lane.oldest(accepts)
    return None if leader is None else lane.take(leader, size)


def padding(entries):
    lengths = [entry.length for entry in entries]
    return max(lengths) * len(lengths) - sum(lengths)


lengths = st.lists(st.integers(1, 80), min_size=1, max_size=40)
sizes = st.builds(
    BatchSize,
    tokens=st.integers(1, 200),
    rows=st.integers(1, 20),
    padding=st.integers(0, 60),
    longest_padded=st.integers(1, 100),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), lengths, st.integers(0, 1)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 30)),
        st.tuples(st.just("take"), sizes),
    ),
    max_size=40,
)


def drain(lane, taken):
    while (entries := take(lane)) is not None:
        taken += [(entry.work, entry.row) for entry in entries]


@given(steps)
def test_each_text_is_in_one_batch_within_its_limits(steps):
    lane, works, taken, cancelled = Lane(), [], [], set()
    waiting: dict[Any, int] = {}  # tokens by (work, row)
    for step, *arguments in steps:
        if step == "add":
            texts, model = arguments
            work = make_work(texts, model=model)
            works.append(work)
            lane.add(work)
            waiting |= {(work, row): length for row, length in enumerate(texts)}
        elif step == "take":
            (size,) = arguments
            oldest = next((work for work in works if any(w is work for w, _ in waiting)), None)
            entries = take(lane, size)
            assert (entries is None) == (oldest is None)
            if entries is None:
                continue
            assert any(entry.work is oldest for entry in entries), "the oldest is left behind"
            assert len({entry.work.key for entry in entries}) == 1
            longest = max(entry.length for entry in entries)
            if len(entries) > 1:
                assert longest * len(entries) <= size.tokens
                assert len(entries) <= size.rows
                assert padding(entries) <= (size.padding if longest <= size.longest_padded else 0)
            for entry in entries:
                assert waiting.pop((entry.work, entry.row)) == entry.length
            taken += [(entry.work, entry.row) for entry in entries]
        elif works:
            work = works[arguments[0] % len(works)]
            if step == "cancel":
                cancelled.add(work)
                lane.remove(work)
                waiting = {key: length for key, length in waiting.items() if key[0] is not work}
            work.end(None)
        assert lane.tokens == sum(waiting.values())
        assert len(lane) == len(waiting)
        for work in works:
            assert work.queued_tokens == sum(
                length for (owner, _), length in waiting.items() if owner is work
            )
    expected = set(waiting) | set(taken)
    drain(lane, taken)
    assert len(taken) == len(set(taken))
    assert set(taken) == expected
    assert (lane.tokens, len(lane)) == (0, 0)
    assert lane.oldest(lambda _: True) is None


@given(st.lists(lengths, min_size=1, max_size=8), st.sampled_from(MODELS))
def test_requests_that_a_device_does_not_accept_wait_for_another(requests, accepted):
    lane = Lane()
    for place, texts in enumerate(requests):
        lane.add(make_work(texts, model=place % 2))
    while (entries := take(lane, accepts=lambda work: work.key.engines is accepted)) is not None:
        assert all(entry.work.key.engines is accepted for entry in entries)
    assert len(lane) == sum(
        len(texts) for place, texts in enumerate(requests) if MODELS[place % 2] is not accepted
    )


def test_a_long_text_is_a_batch_of_its_own():
    lane = Lane()
    lane.add(make_work([500]))
    lane.add(make_work([3, 3]))
    assert [entry.length for entry in take(lane)] == [500]
    assert [entry.length for entry in take(lane)] == [3, 3]


def test_similar_texts_of_other_requests_come_along():
    lane = Lane()
    lane.add(make_work([10]))
    for length in (30, 10, 11, 1, 9):
        lane.add(make_work([length]))
    size = BatchSize(tokens=64, rows=4, padding=8, longest_padded=32)
    assert sorted(entry.length for entry in take(lane, size)) == [9, 10, 10, 11]


def test_other_outputs_are_another_batch():
    lane = Lane()
    lane.add(make_work([5], outputs=("dense",)))
    lane.add(make_work([5], outputs=("dense", "sparse")))
    assert len(take(lane)) == 1
    assert len(take(lane)) == 1


def test_removing_what_was_never_added_changes_nothing():
    lane, other = Lane(), make_work([7])
    lane.remove(other)
    lane.add(make_work([5]))
    lane.remove(other)
    assert lane.tokens == 5
    assert other.queued_tokens == 7
