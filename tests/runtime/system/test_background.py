"""An interrupt ends a call when nothing of it is under way any more, and the model works on.

Each case is a program of its own: an interrupt goes to a process's main thread. They are in the
main thread's hands at a step that is known, and where there is none, at any.
"""

from __future__ import annotations

import textwrap
import threading
import time
from queue import SimpleQueue

import pytest

from bge_runtime.system.background import BackgroundTask, Completion, call_and_note, take_one
from tests.helpers.programs import run_program

pytestmark = pytest.mark.timeout(150)

INTERRUPTS = """
def interrupt_after(*seconds):
    def send():
        for pause in seconds:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=send)
    thread.start()
    return thread

def watched(call, pause):
    # Whatever is in it sleeps at first, and is counted.
    def watching(*arguments, **options):
        under_way.append(1)
        try:
            time.sleep(pause)
            return call(*arguments, **options)
        finally:
            under_way.pop()
    return watching

signal.signal(signal.SIGINT, signal.default_int_handler)
under_way = []
"""


def run_interrupted(folder, body, *arguments):
    """Run a program whose first lines are `INTERRUPTS`."""
    lines = [*INTERRUPTS.splitlines(), *textwrap.dedent(body).splitlines()]
    return run_program(folder, "\n".join(lines), *arguments)


@pytest.mark.parametrize("interrupts", ["0.3", "0.3 0.3 0.3 0.1"], ids=["one", "several"])
def test_no_batch_is_running_when_encode_has_ended(tiny_bundle, tmp_path, interrupts):
    # Python 3.11 and 3.12 take a thread for ended once a join of it is interrupted.
    run_interrupted(
        tmp_path,
        """
        model = FlagModel(sys.argv[1], use_fp16=False, threads=2)
        texts = [f"text {n} of some words" for n in range(500)]
        real = model.engine.run
        model.engine.run = watched(real, 1.5)
        thread = interrupt_after(*map(float, sys.argv[2].split()))
        try:
            model.encode(texts)
        except KeyboardInterrupt:
            assert not under_way, under_way
        else:
            sys.exit("it was not interrupted")
        thread.join()
        model.engine.run = real
        check(model, expected)
        """,
        tiny_bundle,
        interrupts,
    )


def test_no_text_is_being_tokenised_when_encode_has_ended(tiny_bundle, tmp_path):
    run_interrupted(
        tmp_path,
        """
        from bge_runtime.encoding import pipeline

        pipeline._WINDOW = 8
        real = model.tokenizer.encode
        model.tokenizer.encode = watched(real, 1)
        thread = interrupt_after(0.3, 0.2, 0.2)
        try:
            model.encode(TEXTS)
        except KeyboardInterrupt:
            assert not under_way, under_way
        else:
            sys.exit("it was not interrupted")
        thread.join()
        assert not [t for t in threading.enumerate() if t.name.startswith("bge-")]
        model.tokenizer.encode = real
        check(model, expected)
        """,
        tiny_bundle,
    )


def test_an_interrupted_run_on_a_session_thread_is_over_when_encode_has_ended(
    tiny_bundle, tmp_path
):
    # ONNX Runtime writes into what it was given, and calls back into Python.
    run_interrupted(
        tmp_path,
        """
        from bge_runtime.engines.ort_cpu import _run_on_own_thread

        class Session:
            def run_async(self, outputs, feeds, callback, *_):
                work = watched(lambda: callback([np.ones(1)], None, ""), 1)
                threading.Thread(target=work).start()

        thread = interrupt_after(0.3, 0.2)
        try:
            _run_on_own_thread(Session(), ["output"], {}, None)
        except KeyboardInterrupt:
            time.sleep(0.1)  # the callback is the last but one thing it does
            assert not under_way, under_way
        else:
            sys.exit("it was not interrupted")
        thread.join()
        """,
        tiny_bundle,
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_keeps_working_after_interrupts_at_any_time(tiny_bundle, tmp_path, threads):
    # A semaphore of Python's was left locked by one of some hundred.
    run_interrupted(
        tmp_path,
        """
        import random

        model = FlagModel(sys.argv[1], use_fp16=False, threads=int(sys.argv[2]))
        texts = [f"text {n} of some words" for n in range(60)]
        expected, stop, wrong, seed = model.encode(texts), threading.Event(), [], random.Random(0)

        def beside():
            try:
                while not stop.is_set():
                    model.encode(texts)
            except BaseException as error:
                wrong.append(error)

        others = [threading.Thread(target=beside) for _ in range(2)]
        for other in others:
            other.start()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            thread = threading.Thread(
                target=lambda: (time.sleep(seed.random() / 50), os.kill(os.getpid(), signal.SIGINT))
            )
            try:
                thread.start()
                while True:
                    model.encode(texts)
            except KeyboardInterrupt:
                pass
        stop.set()
        for other in others:
            other.join()
        assert not wrong, wrong
        np.testing.assert_allclose(model.encode(texts), expected, rtol=0, atol=1e-6)
        assert model.engine._slots.qsize() == int(sys.argv[2])
        assert not model.engine._leading.locked()
        """,
        tiny_bundle,
        threads,
    )


EXPORTER = """
import signal, sys, time

def clean_up(*_):
    time.sleep(float(sys.argv[1]))
    open(sys.argv[2], "w").close()
    sys.exit(1)

signal.signal(signal.SIGTERM, clean_up)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("cleans_up_for", "interrupts", "has_cleaned_up"), [("1", "1.5", True), ("30", "1.5 1", False)]
)
def test_an_export_has_ended_when_it_is_interrupted(
    tiny_bundle, tmp_path, cleans_up_for, interrupts, has_cleaned_up
):
    # Until then nobody else may begin the same one. A second interrupt is the last.
    (tmp_path / "exporter.py").write_text(EXPORTER)
    mark = tmp_path / "cleaned up"
    run_interrupted(
        tmp_path,
        """
        import subprocess
        from bge_runtime.sources.export_subprocess import run_export

        class Popen(subprocess.Popen):
            def __init__(self, *arguments, **options):
                started.append(self)
                super().__init__(*arguments, **options)

        started, subprocess.Popen = [], Popen
        thread = interrupt_after(*map(float, sys.argv[2].split()))
        try:
            run_export([sys.executable, *sys.argv[3:]], dict(os.environ))
        except KeyboardInterrupt:
            assert started[0].returncode is not None
        else:
            sys.exit("it was not interrupted")
        thread.join()
        """,
        tiny_bundle,
        interrupts,
        tmp_path / "exporter.py",
        cleans_up_for,
        mark,
    )
    assert mark.exists() == has_cleaned_up


# -- The parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [True, False], ids=["started", "not-started"])
def test_a_call_whose_start_is_interrupted_is_over_or_never_begins(monkeypatch, started):
    calls, began = [], threading.Event()

    def work():
        began.set()
        time.sleep(0.2)
        calls.append("over")

    background = BackgroundTask(work, name="bge-test")
    real = background._thread.start

    def interrupted():
        if started:
            real()
            began.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(background._thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.start()
    background.wait()
    assert calls == (["over"] if started else [])
    if not started:  # nor does it later
        real()
        background._thread.join()
        assert not calls


def test_a_call_may_be_waited_for_twice_and_gives_its_result():
    background = BackgroundTask(lambda: 5)
    background.start()
    assert background.result() == 5
    background.wait()
    background.wait()
    failing = BackgroundTask(lambda: 1 / 0)
    failing.start()
    with pytest.raises(ZeroDivisionError):
        failing.result()
    failing.wait()


def test_a_completion_that_is_already_set_does_not_block():
    completion = Completion()
    completion.set()
    completion.wait()
    completion.wait()


def test_an_item_is_taken_although_the_wait_for_it_is_interrupted():
    queue, taken = InterruptedOnce(), []
    queue.put("answer")
    with pytest.raises(KeyboardInterrupt):
        take_one(taken, queue)
    assert taken == ["answer"]


class InterruptedOnce(SimpleQueue):
    """A queue whose first `get` is interrupted."""

    interrupts = 1

    def get(self, *arguments):
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        return super().get(*arguments)


def test_call_and_note_appends_the_result():
    lock, noted = threading.Lock(), []
    call_and_note(noted, lock.acquire, False)
    call_and_note(noted, lock.acquire, False)
    assert noted == [True, False]
    with pytest.raises(RuntimeError):
        call_and_note(noted, threading.Lock().__exit__, None, None, None)
    assert noted == [True, False]
