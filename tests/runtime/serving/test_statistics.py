"""Counts of the last minute, with a clock of the test's own."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.serving import statistics
from bge_runtime.serving.statistics import LastMinute, percentiles


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now_s = 1000.0

        def monotonic(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(statistics, "time", clock)
    return clock


def test_nothing_is_zero(clock):
    report = LastMinute().report()
    assert report["last_minute"]["requests"] == 0
    assert report["last_minute"]["p50_ms"] is None
    assert report["per_second"]["texts"] == [0] * 60
    assert report["per_second"]["p95_ms"] == [None] * 60


def test_each_second_is_in_its_place(clock):
    last = LastMinute()
    for second in range(100):
        clock.now_s = 1000.0 + second
        last.add_batch(texts=second, tokens=10 * second, queued_tokens=second)
        last.add_batch(texts=1, tokens=1, queued_tokens=0)
        last.add_request(latency_ms=second, status=200)
    clock.now_s = 1100.5
    report = last.report()
    assert report["per_second"]["texts"] == [second + 1 for second in range(40, 100)]
    assert report["per_second"]["queued_tokens"] == list(range(40, 100))
    assert report["last_minute"]["requests"] == 60
    assert report["last_minute"]["texts"] == sum(range(41, 101))
    assert report["last_minute"]["p50_ms"] == pytest.approx(70, rel=0.006)
    clock.now_s = 1130.0
    report = last.report()
    assert report["last_minute"]["requests"] == 30
    assert report["per_second"]["texts"][-1] == 0
    clock.now_s = 5000.0
    assert last.report()["last_minute"]["requests"] == 0


def test_statuses_are_told_apart(clock):
    last = LastMinute()
    for status in (200, 200, 400, 429, 499, 500, 503, 504):
        last.add_request(latency_ms=1.0, status=status)
    clock.now_s += 1
    found = last.report()["last_minute"]
    assert (found["requests"], found["rejected"], found["errors"]) == (8, 1, 3)
    assert last._seconds[0].latencies.total() == 2


@pytest.mark.parametrize("batches", [1, 3, 20, 100])
def test_speed_is_that_since_the_first_work_of_the_minute(clock, batches):
    last = LastMinute()
    assert last.report()["last_minute"]["tokens_per_s"] == 0
    for _ in range(batches):
        last.add_batch(texts=30, tokens=300, queued_tokens=0)
        clock.now_s += 3
    found = last.report()["last_minute"]
    assert (found["texts_per_s"], found["tokens_per_s"]) == (10, 100)


@given(st.lists(st.floats(0.01, 1e6), min_size=1), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_a_value_above_that_share(values, share):
    (found,) = percentiles(Counter(map(statistics._step_of, values)), share)
    values.sort()
    exact = values[min(len(values) - 1, int(len(values) * share / 100))]
    assert found == pytest.approx(exact, rel=0.006)


def test_a_second_with_many_requests_keeps_no_more_than_their_steps(clock):
    last = LastMinute()
    for number in range(10_000):
        last.add_request(latency_ms=10 + number / 500, status=200)
    assert len(last._seconds[0].latencies) < 120


def test_memory_is_that_of_a_minute(clock):
    last = LastMinute()
    for _ in range(1000):
        clock.now_s += 1
        last.add_request(latency_ms=1.0, status=200)
    assert len(last._seconds) == 61


def test_threads_lose_no_count():
    last = LastMinute()

    def count():
        for _ in range(2000):
            last.add_request(latency_ms=1.0, status=200)
            last.add_batch(texts=1, tokens=2, queued_tokens=0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(second.requests for second in last._seconds) == 8000
    assert sum(second.tokens for second in last._seconds) == 16000
