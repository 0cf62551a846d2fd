"""The scheduler with engines that wait, fail and crash: every request ends once, with its own."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_runtime.errors import InferenceError
from bge_runtime.serving.scheduling import (
    Scheduler,
    SchedulerOptions,
    StalledError,
    WorkCancelledError,
)
from tests.helpers.fake_engines import FakeEngine, Request, fake_group, wait_for


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def group(engine):
    return fake_group(by_device={"cpu": engine})[0]


@pytest.fixture
def scheduler(group):
    scheduler = Scheduler([group])
    yield scheduler
    scheduler.close()


class Hold:
    """Lets an engine wait until it is told to go on."""

    def __init__(self, engine):
        self.started, self._go_on = threading.Event(), threading.Event()
        engine.before = self._wait

    def _wait(self, _):
        self.started.set()
        assert self._go_on.wait(20)

    def release(self):
        self._go_on.set()


@st.composite
def plans(draw):
    """Requests with their model, lane, texts, and when they are cancelled."""
    return draw(
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.booleans(),
                st.lists(st.integers(1, 90), min_size=1, max_size=12),
                st.sampled_from(["", "", "", "cancel", "late", "fails", "not finite"]),
            ),
            min_size=1,
            max_size=25,
        )
    )


TOKENS = {"fails": 99, "not finite": 13}
ERRORS = {"fails": "it cannot", "not finite": "NaN"}


@given(plans(), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_every_request_ends_once_with_its_own_vectors_or_error(plan, slots, two_devices):
    devices = ["cpu", "cuda:0"] if two_devices else ["cpu"]

    def fail(ids):
        if (ids == 99).any():
            raise InferenceError("it cannot")

    groups = []
    for name in ("a", "b"):
        engines = {device: FakeEngine(slots=slots) for device in devices}
        for each in engines.values():
            each.before = fail
        groups.append(fake_group(name, engines)[0])
    scheduler = Scheduler(groups, SchedulerOptions(max_rows=8))
    try:
        requests = []
        for model, bulk, lengths, fate in plan:
            request = Request(
                groups[model],
                lengths,
                bulk=bulk,
                first=TOKENS.get(fate, len(requests) % 12 + 1),
                deadline_s=time.monotonic() - 1 if fate == "late" else None,
            )
            scheduler.submit(request.work)
            if fate == "cancel":
                scheduler.cancel(request.work)
            requests.append(request)
        for request, (*_, fate) in zip(requests, plan, strict=True):
            error = request.wait()
            if fate == "late":
                assert isinstance(error, TimeoutError)
                assert not request.vectors.given
            elif fate in ERRORS:
                assert ERRORS[fate] in str(error)
            elif fate == "cancel" and error is not None:
                assert isinstance(error, WorkCancelledError)
            else:
                request.check()
        # What is left of failed requests is dropped when its turn comes.
        wait_for(lambda: not any(scheduler.queued_tokens(bulk=bulk) for bulk in (False, True)))
        wait_for(lambda: not scheduler.running_batches)
        assert scheduler.queued_requests == 0
        assert all(request.ends == 1 for request in requests)
        assert scheduler.is_computing  # no thread has ended
        assert all(thread.is_alive() for thread in scheduler._threads)
    finally:
        scheduler.close()
    assert not scheduler.is_computing


def test_requests_from_many_threads_are_all_answered():
    engines = {"cpu": FakeEngine(slots=2), "cuda:0": FakeEngine(slots=2)}
    group, _ = fake_group(by_device=engines)
    scheduler = Scheduler([group])
    answered, left = [], []

    def send(first):
        for turn in range(100):
            request = Request(group, [turn % 7 + 1] * (turn % 5 + 1), first=first, bulk=turn % 2)
            scheduler.submit(request.work)
            if turn % 10 == 3:
                scheduler.cancel(request.work)
                left.append(request.wait())
            else:
                request.check()
                answered.append(turn)

    threads = [threading.Thread(target=send, args=(first,)) for first in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(answered), len(left)) == (720, 80)
    scheduler.close()


def test_what_is_cancelled_while_it_waits_is_not_computed(scheduler, group, engine):
    hold = Hold(engine)
    first, second, third = (Request(group, [3], first=first) for first in (1, 2, 3))
    scheduler.submit(first.work)
    assert hold.started.wait(20)
    for request in (second, third):
        scheduler.submit(request.work)
    assert scheduler.queued_tokens(bulk=False) == 6
    scheduler.cancel(second.work)
    assert scheduler.queued_tokens(bulk=False) == 3
    assert isinstance(second.wait(), WorkCancelledError)
    hold.release()
    first.check()
    third.check()
    assert engine.runs == [(1, 3), (1, 3)]


def test_what_is_cancelled_while_it_is_computed_ends_at_once(scheduler, group, engine):
    hold = Hold(engine)
    request = Request(group, [3])
    scheduler.submit(request.work)
    assert hold.started.wait(20)
    scheduler.cancel(request.work)
    assert isinstance(request.wait(), WorkCancelledError)
    hold.release()
    wait_for(lambda: not scheduler.running_batches)
    assert request.ends == 1
    assert not request.vectors.given


def test_a_request_past_its_deadline_costs_no_batch(scheduler, group, engine):
    hold = Hold(engine)
    first = Request(group, [3])
    scheduler.submit(first.work)
    assert hold.started.wait(20)
    late = Request(group, [5], deadline_s=time.monotonic() + 0.01)
    scheduler.submit(late.work)
    time.sleep(0.02)
    hold.release()
    assert isinstance(late.wait(), TimeoutError)
    assert (1, 5) not in engine.runs


def test_queries_go_before_bulk_work_that_came_first(scheduler, group, engine):
    hold = Hold(engine)
    scheduler.submit(Request(group, [4]).work)
    assert hold.started.wait(20)
    bulk = Request(group, [60] * 5, bulk=True)
    scheduler.submit(bulk.work)
    query = Request(group, [2])
    scheduler.submit(query.work)
    hold.release()
    query.check()
    assert engine.runs[1] == (1, 2)
    bulk.check()


def test_queries_without_end_do_not_stop_bulk_work(scheduler, group, engine):
    engine.before = lambda _: time.sleep(0.002)
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            request = Request(group, [50])
            scheduler.submit(request.work)
            request.check()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        bulk = Request(group, [30], bulk=True)
        time.sleep(0.05)
        scheduler.submit(bulk.work)
        bulk.check()
        assert bulk.work.started_s - bulk.work.queued_s < 2
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_bulk_work_is_computed_in_slices(group, engine):
    engine.batches = engine.batches.__class__(
        tokens=100_000, parallel_tokens=100_000, overhead_tokens=8
    )
    engine.before = lambda ids: time.sleep(ids.size * 1e-5)
    scheduler = Scheduler([group], SchedulerOptions(slice_s=0.02))
    for _ in range(3):  # the speed is measured first
        request = Request(group, [100] * 2)
        scheduler.submit(request.work)
        request.check()
    engine.runs.clear()
    bulk = Request(group, [50] * 400, bulk=True)
    scheduler.submit(bulk.work)
    bulk.check()
    assert max(rows * columns for rows, columns in engine.runs) <= 0.02 / 1e-5 * 1.1
    scheduler.close()


def test_a_hung_engine_fails_its_batch_and_no_other(group, engine):
    hold = Hold(engine)
    scheduler = Scheduler([group], SchedulerOptions(stalled_s=0.1))
    request = Request(group, [3])
    scheduler.submit(request.work)
    assert hold.started.wait(20)
    scheduler.fail_stalled()
    assert request.ends == 0
    wait_for(lambda: scheduler.stalled(group) is not None)
    scheduler.fail_stalled()
    assert isinstance(request.wait(), StalledError)
    other = Request(group, [4], first=2)
    scheduler.submit(other.work)
    hold.release()
    other.check()
    assert scheduler.stalled(group) is None
    scheduler.close()


def test_closing_ends_what_waits_and_not_what_is_computed(group, engine):
    hold = Hold(engine)
    scheduler = Scheduler([group])
    running, waiting = Request(group, [3]), Request(group, [4])
    scheduler.submit(running.work)
    assert hold.started.wait(20)
    scheduler.submit(waiting.work)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    assert isinstance(waiting.wait(), WorkCancelledError)
    assert running.ends == 0
    hold.release()
    running.check()
    closing.join(20)
    assert not scheduler.is_computing
    with pytest.raises(WorkCancelledError, match="closed"):
        scheduler.submit(Request(group, [1]).work)


@pytest.mark.parametrize("where", ["_take", "_size"])
def test_a_bug_of_the_scheduler_answers_what_waits_and_goes_on(
    scheduler, group, engine, monkeypatch, where
):
    """``_size`` fails while texts are taken, ``_take`` fails before."""
    hold = Hold(engine)
    first = Request(group, [3])
    scheduler.submit(first.work)
    assert hold.started.wait(20)
    requests = [Request(group, [2]), Request(group, [80] * 3, bulk=True)]
    for request in requests:
        scheduler.submit(request.work)

    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, where, fail)
        hold.release()
        first.check()
        for request in requests:
            assert isinstance(request.wait(), ZeroDivisionError)
    after = Request(group, [5])
    scheduler.submit(after.work)
    after.check()


def test_a_bug_after_texts_were_taken_leaves_none_without_answer(scheduler, group, monkeypatch):
    from bge_runtime.serving.scheduling import lanes

    def fail(*_):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(lanes.Lane, "_forget_empty", fail)
        request = Request(group, [2])
        scheduler.submit(request.work)
        assert isinstance(request.wait(), ZeroDivisionError)
    after = Request(group, [5])
    scheduler.submit(after.work)
    after.check()


def test_a_bug_in_the_engines_answers_the_batch(scheduler, group, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(group, "run", fail)
        request = Request(group, [2])
        scheduler.submit(request.work)
        assert isinstance(request.wait(), ZeroDivisionError)
    after = Request(group, [5])
    scheduler.submit(after.work)
    after.check()


def test_a_bug_in_what_counts_batches_fails_no_request(group, engine):
    def fail(*_):
        raise ZeroDivisionError("a bug")

    scheduler = Scheduler([group], on_batch=fail)
    for _ in range(3):
        request = Request(group, [2])
        scheduler.submit(request.work)
        request.check()
    scheduler.close()
