"""A model survives fork and pickle: gunicorn, Celery and Ray depend on it.

Each case is a program of its own, run with nothing but the runtime loaded, so that
neither pytest's threads nor PyTorch's have a part in it.
"""

from __future__ import annotations

import copy
import pickle
import shutil
from types import SimpleNamespace

import pytest

from bge_runtime import FlagModel
from bge_runtime.encoding import EngineSet
from bge_runtime.engines import openvino
from bge_runtime.errors import BundleIntegrityError
from bge_runtime.variants import selection
from tests.helpers.programs import run_program
from tests.helpers.runtime import TEXTS, assert_same

pytestmark = pytest.mark.timeout(150)


def test_a_forked_child_encodes_and_ends_and_so_does_its_parent(tiny_bundle, tmp_path):
    run_program(
        tmp_path,
        """
        for _ in range(3):
            fork_and_check(model, expected)
            check(model, expected)
        """,
        tiny_bundle,
    )


def test_a_forked_child_encodes_where_parallel_tokenizers_are_asked_for(tiny_bundle, tmp_path):
    # The tokenizers then do not switch their threads off by themselves, and hang.
    run_program(
        tmp_path,
        """
        model.encode(TEXTS * 100)
        fork_and_check(model, expected)
        """,
        tiny_bundle,
        parallelism="true",
    )


def test_a_forked_child_refuses_a_bundle_that_has_been_replaced(
    bundle_copy, tiny_mean_bundle, tmp_path
):
    run_program(
        tmp_path,
        """
        import shutil
        from bge_runtime.errors import BundleIntegrityError

        shutil.rmtree(sys.argv[1])
        shutil.copytree(sys.argv[2], sys.argv[1])
        child = os.fork()
        if child == 0:
            try:
                model.encode("text")
            except BundleIntegrityError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        """,
        bundle_copy,
        tiny_mean_bundle,
    )


def test_the_child_of_a_child_encodes(tiny_bundle, tmp_path):
    run_program(
        tmp_path,
        """
        child = os.fork()
        fork_and_check(model, expected)  # in both: before and after an engine is opened
        check(model, expected)
        fork_and_check(model, expected)
        if child:
            sys.exit(os.waitpid(child, 0)[1])
        """,
        tiny_bundle,
    )


def test_a_process_may_fork_while_another_thread_encodes(tiny_bundle, tmp_path):
    run_program(
        tmp_path,
        """
        stop = threading.Event()
        wrong = []

        def busy():
            while not stop.is_set():
                try:
                    # Beyond one window, so that the tokenising thread is at work, too.
                    model.encode(["many short texts"] * 2100)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for pause in range(8):
                time.sleep(0.003 * pause)  # at a different point of it each time
                fork_and_check(model, expected)
        finally:
            stop.set()
        for thread in threads:
            thread.join()
        assert not wrong, wrong
        check(model, expected)
        """,
        tiny_bundle,
    )


def test_a_process_may_fork_while_another_thread_opens_the_engine(tiny_bundle, tmp_path):
    # The child has a copy of a lock that is held by a thread it does not have.
    run_program(
        tmp_path,
        """
        unopened = pickle.loads(pickle.dumps(model))
        held, over = threading.Event(), threading.Event()

        def hold():
            with unopened._engines._lock:
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            fork_and_check(unopened, expected)
        finally:
            over.set()
            thread.join()
        check(unopened, expected)
        """,
        tiny_bundle,
    )


def test_a_process_may_fork_while_another_thread_makes_something_once(tiny_bundle, tmp_path):
    run_program(
        tmp_path,
        """
        from bge_runtime.system.locks import once

        held, over = threading.Event(), threading.Event()

        @once()
        def make():
            held.set()
            over.wait()

        thread = threading.Thread(target=make)
        thread.start()
        held.wait()
        child = os.fork()
        if not child:
            signal.alarm(20)
            over.set()
            make()
            os._exit(0)
        over.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        """,
        tiny_bundle,
    )


def test_a_process_may_fork_while_another_thread_draws_a_progress_bar(tiny_bundle, tmp_path):
    # tqdm has one lock for all bars, which a fork copies as it is. A call that shows
    # no bar must not wait for it.
    run_program(
        tmp_path,
        """
        from tqdm import tqdm

        assert threading.active_count() == 1  # tqdm starts a thread with its first bar

        held, over = threading.Event(), threading.Event()

        def hold():
            with tqdm.get_lock():
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            fork_and_check(model, expected)
        finally:
            over.set()
            thread.join()
        """,
        tiny_bundle,
    )


@pytest.mark.parametrize("late", ["thread", "atexit"])
def test_a_model_encodes_while_python_ends(tiny_bundle, tmp_path, late):
    # An executor takes nothing any more once the main thread has ended.
    done = run_program(
        tmp_path,
        """
        import atexit

        def work():
            if sys.argv[2] == "thread":
                threading.main_thread().join()
            check(model, expected)
            assert model.encode(["many short texts"] * 5000).shape == (5000, 48)
            print("done", flush=True)

        if sys.argv[2] == "thread":
            threading.Thread(target=work).start()
        else:
            atexit.register(work)
        """,
        tiny_bundle,
        late,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_model_is_an_argument_of_multiprocessing(tiny_bundle, tmp_path, method):
    run_program(
        tmp_path,
        """
        context = multiprocessing.get_context(sys.argv[2])
        answers = context.Queue()
        processes = [
            context.Process(target=child_of_multiprocessing, args=(model, answers))
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            found = answers.get(timeout=60)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0, process.exitcode
        check(model, expected)
        """,
        tiny_bundle,
        method,
    )


def test_a_pool_of_forked_workers_maps_a_models_method(tiny_bundle, tmp_path):
    run_program(
        tmp_path,
        """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(model.encode, TEXTS, chunksize=7).get(timeout=60)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        check(model, expected)
        """,
        tiny_bundle,
    )


def test_the_check_notices_a_child_that_hangs(tiny_bundle, tmp_path):
    # The model of the child is not told of the fork, and waits for its parent's thread.
    with pytest.raises(AssertionError, match="the child hangs"):
        run_program(
            tmp_path,
            """
            from bge_runtime.encoding import engine_set

            real, started = time.monotonic, time.monotonic()
            time.monotonic = lambda: started + 10 * (real() - started)  # 2 s for the child
            unopened = pickle.loads(pickle.dumps(model))
            engine_set._alive.discard(unopened._engines)
            unopened._engines._lock.acquire()
            fork_and_check(unopened, expected)
            """,
            tiny_bundle,
        )


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_telemetry_of_onnxruntime_is_off_unless_asked_for(tiny_bundle, tmp_path, given, expected):
    # Its thread, which starts at the import, makes forked children hang when they end.
    run_program(
        tmp_path,
        """
        assert os.environ["ORT_DISABLE_TELEMETRY"] == sys.argv[2]
        """,
        tiny_bundle,
        expected,
        telemetry=given,
    )


# -- Pickle -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [
        *[
            pytest.param(
                lambda model, protocol=protocol: pickle.loads(pickle.dumps(model, protocol)),
                id=f"pickle-{protocol}",
            )
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
        ],
        copy.copy,
        copy.deepcopy,
    ],
)
def test_a_copy_encodes_equally(tiny_bundle, duplicate):
    model = FlagModel(
        str(tiny_bundle),
        normalize_embeddings=False,
        query_instruction_for_retrieval="Ask: ",
        passage_instruction_for_retrieval="Tell: ",
        query_max_length=9,
        truncate_dim=20,
        threads=1,
    )
    other = duplicate(model)
    assert other.engine is not model.engine
    assert other.engine.info == model.engine.info
    for method in ("encode", "encode_queries", "encode_corpus"):
        assert_same(getattr(other, method)(TEXTS), getattr(model, method)(TEXTS), tolerance=0)


def test_a_pickle_is_small(model):
    # Weights and sessions stay behind: each worker opens the bundle itself.
    assert len(pickle.dumps(model)) < 10_000


def test_a_copy_computes_in_what_its_own_machine_does(full_tiny_bundle, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "cpu_capabilities", lambda: ("FP32", "BF16"))
        patch.setattr(selection, "_passes_parity", lambda *_: True)
        patch.setattr(EngineSet, "_open_all", lambda self, on_compile: {"cpu": SimpleNamespace(
            past_names=(), info=SimpleNamespace(variant=self._variants["cpu"].name)
        )})  # fmt: skip
        there = FlagModel(str(full_tiny_bundle))
        assert there.engine.info.variant == "openvino-bf16"
        pickled = pickle.dumps(there)
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32",))
    here = pickle.loads(pickled)
    assert here.engine.info.variant == "cpu-fp32"
    assert here.encode(["text"]).shape == (1, 48)


def test_unpickling_refuses_a_bundle_that_has_been_replaced(bundle_copy, tiny_mean_bundle):
    pickled = pickle.dumps(FlagModel(str(bundle_copy)))
    shutil.rmtree(bundle_copy)
    shutil.copytree(tiny_mean_bundle, bundle_copy)
    with pytest.raises(BundleIntegrityError):
        pickle.loads(pickled)


def test_unpickling_checks_the_bundle_again(bundle_copy):
    pickled = pickle.dumps(FlagModel(str(bundle_copy)))
    (bundle_copy / "tokenizer.json").unlink()
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json is missing"):
        pickle.loads(pickled)
