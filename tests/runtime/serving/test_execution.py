"""A batch on the engines: errors, memory, NaN, and engines that are opened again."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bge_runtime.errors import BundleError, InferenceError, NotFiniteError, OutOfMemoryError
from bge_runtime.serving.scheduling.lanes import Entry
from tests.helpers.fake_engines import FakeEngine, Request, fake_group

pytestmark = pytest.mark.filterwarnings("ignore:.*run in two halves")


def entries_of(*requests):
    pairs = [(each.work, row) for each in requests for row in range(len(each.work.tokens))]
    return [
        Entry(len(work.tokens[row]), number, work, row) for number, (work, row) in enumerate(pairs)
    ]


def run(group, *requests):
    group.run("cpu", parallel=False, entries=entries_of(*requests))


@pytest.fixture
def engine():
    return FakeEngine(tokens=256)


@pytest.fixture
def opened(engine):
    return fake_group(by_device={"cpu": engine})


@pytest.fixture
def group(opened):
    return opened[0]


def has(token):
    return lambda ids: (ids == token).any()


def test_each_request_gets_its_own_rows(group):
    requests = [Request(group, lengths, first=n) for n, lengths in enumerate([[3, 1], [2], [5]], 1)]
    run(group, *requests)
    for request in requests:
        request.check()
    assert group.failed is None


def test_a_text_that_is_not_finite_fails_its_request_only(group, engine, opened):
    good, bad, other = (Request(group, [2, 3], first=first) for first in (1, 13, 2))
    run(group, good, bad, other)
    good.check()
    other.check()
    assert isinstance(bad.wait(), NotFiniteError)
    assert opened[1].reopened == 0
    assert group.failed is None  # the engine did what it was told


@pytest.mark.parametrize("error", [InferenceError, OutOfMemoryError])
def test_a_text_on_which_an_engine_always_fails_fails_its_request_only(
    group, engine, opened, error
):
    def fail(ids):
        if has(99)(ids):
            raise error("it cannot")

    engine.before = fail
    requests = [Request(group, [2, 3], first=first) for first in (1, 99, 2)]
    run(group, *requests)
    requests[0].check()
    requests[2].check()
    assert isinstance(requests[1].wait(), error)
    assert opened[1].reopened == 0  # the engine computes what others have sent


def test_without_memory_for_a_batch_it_is_run_in_halves(group, engine):
    def fail(ids):
        if len(ids) > 2:
            raise OutOfMemoryError("too much")

    engine.before = fail
    requests = [Request(group, [2, 3, 4], first=first) for first in (1, 2)]
    run(group, *requests)
    for request in requests:
        request.check()
    assert max(rows for rows, _ in engine.runs) == 2


@pytest.mark.parametrize("error", [InferenceError, NotFiniteError])
def test_texts_with_a_vector_are_not_computed_again_when_the_rest_fails(group, engine, error):
    """A batch without memory is halved; then its second half fails for another reason."""
    failed = []

    def fail(ids):
        if len(ids) > 2:
            raise OutOfMemoryError("too much")
        if has(5)(ids) and not failed:
            failed.append(True)
            raise error("once")

    engine.before = fail
    first, second = Request(group, [2, 2, 2], first=1), Request(group, [2], first=5)
    run(group, first, second)
    first.check()
    second.check()


def test_a_crashed_engine_is_opened_again_and_the_batch_run_once_more(group, engine, opened):
    def crash(_):
        engine.before = lambda _: None
        raise InferenceError("crashed")

    engine.before = crash
    request = Request(group, [4, 2])
    run(group, request)
    request.check()
    assert opened[1].reopened == 1
    assert group.failed is None


def test_an_engine_that_stays_broken_is_not_opened_again_for_each_batch(group, engine, opened):
    def crash(_):
        raise InferenceError("crashed")

    engine.before = crash
    for _ in range(3):
        request = Request(group, [4, 2])
        run(group, request)
        assert isinstance(request.wait(), InferenceError)
    assert opened[1].reopened == 1
    assert group.failed == "crashed"
    engine.before = lambda _: None
    request = Request(group, [4])
    run(group, request)
    request.check()
    assert group.failed is None


def test_an_engine_that_cannot_be_opened_again_fails_its_batch(group, engine, opened):
    def crash(_):
        raise InferenceError("crashed")

    def refuse():
        raise BundleError("the bundle is gone")

    engine.before, opened[1].on_reopen = crash, refuse
    request = Request(group, [4])
    run(group, request)
    assert str(request.wait()) == "crashed"


def test_threads_that_failed_on_the_same_engine_open_it_again_once(group, engine, opened):
    barrier = threading.Barrier(3)

    def crash(_):
        barrier.wait(10)
        raise InferenceError("crashed")

    engine.before = crash
    opened[1].on_reopen = lambda: setattr(engine, "before", lambda _: None)
    requests = [Request(group, [2], first=first) for first in (1, 2, 3)]
    threads = [threading.Thread(target=run, args=(group, request)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for request in requests:
        request.check()
    assert opened[1].reopened == 1


def test_a_bug_in_an_engine_fails_the_batch(group, engine):
    def break_down(_):
        raise ZeroDivisionError("a bug")

    engine.before = break_down
    requests = [Request(group, [2]), Request(group, [3])]
    run(group, *requests)
    assert all(isinstance(request.wait(), ZeroDivisionError) for request in requests)
    assert group.failed == "a bug"


def test_speed_is_measured_in_tokens_of_a_slot():
    engine = FakeEngine(slots=4, tokens=256)
    group, _ = fake_group(by_device={"cpu": engine})
    engine.before = lambda _: threading.Event().wait(0.05)
    assert group.tokens_per_s == 0
    for _ in range(3):
        run(group, Request(group, [100, 100]))
    # With all threads on one batch, 200 tokens in 0.05 s.
    assert 200 / 0.05 * 0.4 < group.tokens_per_s < 200 / 0.05 * 1.05
    assert np.isfinite(group.devices["cpu"].token_s)
