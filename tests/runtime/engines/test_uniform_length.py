"""The branch of a GPU's graph for texts of one length."""

from __future__ import annotations

import numpy as np
import pytest

from bge_runtime.engines import ort_cuda
from bge_runtime.engines.batch_arrays import graph_inputs
from bge_runtime.engines.cuda_threads import CudaThreads
from bge_runtime.engines.ort_cuda import OrtCudaEngine


class Branches:
    """A session of a graph with a branch for texts of one length, which may fail with an error."""

    def __init__(self, error: Exception | None = None):
        self.error, self.taken = error, []

    def run(self, _outputs, feeds, _options):
        self.taken.append(bool(feeds["one_length"]))
        if self.error is not None and self.taken[-1]:
            raise self.error
        return [np.ones((len(feeds["token_offset"]), 8), dtype=np.float32)]


def feeds_of(rows: int, columns: int, *, short: int = 0):
    mask = np.ones((rows, columns), dtype=np.int64)
    mask[-1, columns - short :] = 0
    return graph_inputs({"cumulative_sequence_length", "one_length"}, mask, mask)


@pytest.fixture
def branching():
    """A GPU's engine without a session."""
    engine = object.__new__(OrtCudaEngine)
    engine._run_options = None
    engine._uniform_length = ort_cuda._UniformLengthBranch()
    engine._threads = CudaThreads(2)
    with engine._threads._executor:
        yield engine


@pytest.fixture
def compute(branching):
    """A function that computes a batch as that engine does, with any session."""
    return lambda session, feeds: branching._compute(session, ["sentence_embedding"], feeds)


def test_frequent_large_shapes_use_the_branch(compute):
    session, runs = Branches(), ort_cuda._UNIFORM_LENGTH_RUNS
    for _ in range(runs + 2):
        compute(session, feeds_of(64, 512))
        compute(session, feeds_of(64, 100))  # too small
        compute(session, feeds_of(64, 512, short=1))
    assert session.taken == [False] * 3 * runs + [True, False, False] * 2
    compute(session, feeds_of(32, 512))
    assert not session.taken[-1]


def test_a_single_long_text_uses_the_branch(compute):
    session = Branches()
    for _ in range(ort_cuda._UNIFORM_LENGTH_RUNS + 1):
        compute(session, feeds_of(1, 8192))
    assert session.taken[-1]


def test_a_failing_branch_is_disabled(compute):
    session = Branches(RuntimeError("cuDNN has no plan"))

    def run_often():
        return [compute(session, feeds_of(64, 512)) for _ in range(40)]

    with pytest.warns(UserWarning, match=r"one length.*fails.*no plan.*left out") as said:
        found = run_often()
    assert (len(found), len(said), session.taken.count(True)) == (40, 1, 1)
    assert all(vectors.shape == (64, 8) for (vectors,) in found)


def test_running_out_of_memory_does_not_disable_the_branch(compute):
    session = Branches(RuntimeError("Failed to allocate memory for requested buffer"))
    for _ in range(ort_cuda._UNIFORM_LENGTH_RUNS):
        compute(session, feeds_of(64, 512))
    # The pipeline runs the batch in halves.
    with pytest.raises(RuntimeError, match="allocate"):
        compute(session, feeds_of(64, 512))
    session.error = None
    compute(session, feeds_of(64, 512))
    assert session.taken[-1]


def test_the_branch_can_be_forced(branching, compute):
    session = Branches()
    branching._uniform_length = ort_cuda._UniformLengthBranch(always=True)
    for feeds in (feeds_of(1, 3), feeds_of(2, 3, short=1)):
        compute(session, feeds)
    assert session.taken == [True, False]


def test_the_calling_thread_runs_the_session_while_python_exits(branching, compute):
    branching._threads._executor.shutdown()
    (vectors,) = compute(Branches(), feeds_of(2, 3))
    assert vectors.shape == (2, 8)
