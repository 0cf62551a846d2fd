"""Who gets the engines: no request, model or device starves another."""

from __future__ import annotations

import threading
import time

import pytest

from bge_runtime.errors import InferenceError
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.models.admission import Admission
from bge_runtime.serving.options import BULK_QUEUE_S, MIN_QUEUED_TOKENS, QUERY_QUEUE_S
from bge_runtime.serving.scheduling import Scheduler, SchedulerOptions
from tests.helpers.fake_engines import FakeEngine, Request, fake_group, wait_for


def slow(engine, token_s):
    """Let an engine take so long for each token."""
    engine.before = lambda ids: time.sleep(token_s * ids.size)
    return engine


def measured(group):
    """Let a group know its speed."""
    group.warm_up(["sentence_embedding"])
    return group


@pytest.fixture
def close():
    """Close all schedulers that a test has started."""
    started = []
    yield started.append
    for scheduler in started:
        scheduler.close()


def start(close, groups, **options):
    scheduler = Scheduler(groups, SchedulerOptions(**options))
    close(scheduler)
    return scheduler


def test_a_small_bulk_request_does_not_wait_for_a_giant_one(close):
    group = measured(fake_group(by_device={"cpu": slow(FakeEngine(), 1e-4)})[0])
    scheduler = start(close, [group], slice_s=0.01)
    giant = Request(group, [60] * 400, bulk=True)  # 2.4 s
    scheduler.submit(giant.work)
    small = Request(group, [30], bulk=True, first=2)
    started_s = time.monotonic()
    scheduler.submit(small.work)
    small.check()
    assert time.monotonic() - started_s < 1
    assert giant.ends == 0
    giant.check()


def test_queries_and_bulk_work_both_go_on(close):
    engine = slow(FakeEngine(), 1e-4)
    group = measured(fake_group(by_device={"cpu": engine})[0])
    scheduler = start(close, [group], slice_s=0.01)
    bulk = Request(group, [60] * 20, bulk=True, first=3)  # 0.12 s, and 2 s with its share
    scheduler.submit(bulk.work)
    over = threading.Event()
    waits = []

    def ask():
        while not over.is_set():
            started_s = time.monotonic()
            query = Request(group, [60], first=5)
            scheduler.submit(query.work)
            query.check()
            waits.append(time.monotonic() - started_s)

    # More than the engine can do, as each asks again at once.
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    bulk.check()
    over.set()
    for thread in threads:
        thread.join()
    shapes = [rows * columns for rows, columns in engine.runs]
    assert len(waits) > 20  # queries had most of the time
    assert max(shapes) <= 128


def test_a_device_that_fails_leaves_its_work_to_the_other(close):
    bad, good = FakeEngine(), slow(FakeEngine(), 1e-4)

    def fail(_):
        raise InferenceError("broken")

    bad.before = fail
    group, engines = fake_group(by_device={"cuda:0": bad, "cuda:1": good})
    scheduler = start(close, [group])
    for _ in range(100):
        request = Request(group, [20])
        scheduler.submit(request.work)
        request.check()
    assert group.failed is None
    assert group.devices["cuda:0"].failed == "broken"
    assert engines.reopened == 0
    bad.before = lambda _: None
    group.devices["cuda:0"].rests_until_s = 0.0  # it has rested
    requests = [Request(group, [40]) for _ in range(20)]
    for request in requests:
        scheduler.submit(request.work)
    for request in requests:
        request.check()
    wait_for(lambda: bad.runs)
    assert group.devices["cuda:0"].failed is None


def test_a_model_that_needs_the_whole_device_has_it(close):
    parallel, alone = slow(FakeEngine(slots=4), 1e-5), FakeEngine(slots=1)
    overlaps = []

    def note(_):
        time.sleep(0.002)
        overlaps.append(parallel._at_once)

    alone.before = note
    first = fake_group("first", {"cpu": parallel})[0]
    second = fake_group("second", {"cpu": alone})[0]
    scheduler = start(close, [first, second])
    requests = [
        Request(group, [40] * 3, bulk=bulk)
        for bulk in (False, True)
        for group in [first, second] * 30
    ]
    for request in requests:
        scheduler.submit(request.work)
    for request in requests:
        request.check()
    assert alone.most_at_once == 1
    assert set(overlaps) == {0}
    assert parallel.most_at_once > 1


def test_long_texts_are_computed_one_by_one_beside_queries(close):
    """On a CPU each takes all threads, and beside another it would only wait, and seem stalled."""
    engine = FakeEngine(slots=4, tokens=512)
    at_once, most = [], []

    def wait(ids):
        if ids.size <= 2048:
            return
        at_once.append(ids.size)
        most.append(len(at_once))
        time.sleep(1e-4 * ids.size)
        at_once.pop()

    engine.before = wait
    group = measured(fake_group(by_device={"cpu": engine})[0])
    scheduler = start(close, [group], stalled_s=0.2)
    long = [Request(group, [3000], bulk=True) for _ in range(6)]  # 0.3 s each
    for request in long:
        scheduler.submit(request.work)
    group.devices["cpu"].token_s = 1e-4
    waits = []
    until_s = time.monotonic() + 20
    while any(not request.ends for request in long):
        assert time.monotonic() < until_s
        scheduler.fail_stalled()
        query, started_s = Request(group, [20], first=3), time.monotonic()
        scheduler.submit(query.work)
        query.check()
        waits.append(time.monotonic() - started_s)
    for request in long:
        request.check()
    assert max(most) == 1
    assert sorted(waits)[len(waits) // 2] < 0.1


def test_slices_of_bulk_work_are_cut_for_each_device(close):
    by_device = {"cpu": slow(FakeEngine(), 4e-4), "cuda:0": slow(FakeEngine(tokens=2048), 1e-5)}
    group = measured(fake_group(by_device=by_device)[0])
    by_device["cpu"].batches = by_device["cuda:0"].batches
    scheduler = start(close, [group], slice_s=0.05)
    request = Request(group, [32] * 300, bulk=True)
    for engine in by_device.values():
        engine.runs.clear()
    scheduler.submit(request.work)
    request.check()
    largest = {
        name: max(rows * columns for rows, columns in engine.runs)
        for name, engine in by_device.items()
    }
    assert largest["cpu"] <= 160  # 125 tokens in 0.05 s, and the machine may be faster for once
    assert largest["cuda:0"] > 1000


def test_a_text_that_no_engine_computes_does_not_open_the_engines_each_time(close):
    engine = FakeEngine()

    def fail(ids):
        if (ids[:, 0] == 99).any():
            raise InferenceError("it cannot")

    engine.before = fail
    group, engines = fake_group(by_device={"cpu": engine})
    scheduler = start(close, [group])
    for _ in range(10):
        bad, good = Request(group, [4], first=99), Request(group, [5])
        scheduler.submit(bad.work)
        scheduler.submit(good.work)
        good.check()
        assert isinstance(bad.wait(), InferenceError)
    assert engines.reopened <= 1


class Held:
    """A scheduler whose engines wait, so that what is submitted stays in the queue."""

    def __init__(self, groups):
        self.go_on = threading.Event()
        for group in groups:
            for found in group.devices.values():
                found.single.before = lambda _: self.go_on.wait(20)
        self.scheduler = Scheduler(groups)
        first = Request(groups[0], [5])
        self.scheduler.submit(first.work)
        wait_for(lambda: self.scheduler.running_batches)

    def close(self):
        self.go_on.set()
        self.scheduler.close()


def test_a_lane_that_models_share_is_counted_in_time():
    fast = measured(fake_group("fast", {"cpu": slow(FakeEngine(), 1e-6)})[0])
    heavy = measured(fake_group("heavy", {"cpu": slow(FakeEngine(), 1e-4)})[0])
    held = Held([fast, heavy])
    try:
        admission = Admission(fast, held.scheduler, max_queued_tokens=None)
        admission.check(100, bulk=False)
        # Three times as long as queries may wait, of the slow model.
        tokens = max(int(3 * QUERY_QUEUE_S * heavy.tokens_per_s), 2 * MIN_QUEUED_TOKENS)
        held.scheduler.submit(Request(heavy, [500] * (tokens // 500)).work)
        expected_s = tokens / heavy.tokens_per_s
        assert held.scheduler.queued_s(bulk=False) == pytest.approx(expected_s, rel=0.1)
        with pytest.raises(RequestError) as refused:
            admission.check(100, bulk=False)
        assert refused.value.kind is Kind.OVERLOADED
        assert abs(int(refused.value.headers["retry-after"]) - expected_s) <= 1 + 0.1 * expected_s
        admission.check(100, bulk=True)  # the other lane has room
    finally:
        held.close()


def test_texts_that_are_being_tokenized_count_as_waiting():
    group = measured(fake_group(by_device={"cpu": slow(FakeEngine(), 1e-4)})[0])
    held = Held([group])
    try:
        admission = Admission(group, held.scheduler, max_queued_tokens=1000)
        with admission.tokenizing(900, bulk=True):
            admission.check(100, bulk=True)
            with pytest.raises(RequestError):
                admission.check(200, bulk=True)
            admission.check(900, bulk=False)
        admission.check(200, bulk=True)
    finally:
        held.close()


def test_a_request_larger_than_the_queue_needs_half_of_it():
    group = measured(fake_group(by_device={"cpu": slow(FakeEngine(), 1e-4)})[0])
    held = Held([group])
    try:
        admission = Admission(group, held.scheduler, max_queued_tokens=None)
        giant = int(10 * BULK_QUEUE_S * group.tokens_per_s)
        admission.check(giant, bulk=True)
        with admission.tokenizing(int(0.6 * BULK_QUEUE_S * group.tokens_per_s), bulk=True):
            with pytest.raises(RequestError):
                admission.check(giant, bulk=True)
            admission.check(100, bulk=True)
    finally:
        held.close()


def test_bulk_texts_longer_than_a_slice_get_no_more_than_their_share(close):
    engine, seconds = FakeEngine(), {"bulk": 0.0, "query": 0.0}

    def work(ids):
        time.sleep(1e-4 * ids.size)
        seconds["bulk" if ids.shape[1] == 600 else "query"] += 1e-4 * ids.size

    engine.before = work
    group = measured(fake_group(by_device={"cpu": engine})[0])
    scheduler = start(close, [group], slice_s=0.005)
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            query = Request(group, [60], first=5)
            scheduler.submit(query.work)
            query.check()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    bulk = Request(group, [600] * 100, bulk=True)  # 0.06 s each
    scheduler.submit(bulk.work)
    time.sleep(3)
    stop.set()
    for thread in threads:
        thread.join()
    share = seconds["bulk"] / sum(seconds.values())
    scheduler.cancel(bulk.work)
    assert 0 < share < 0.2  # it would be nine tenths if each text counted as one slice
