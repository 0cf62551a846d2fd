"""Arrays of a batch for graphs without padding."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.engines.batch_arrays import graph_inputs
from tests.helpers.runtime import PROPERTY


@PROPERTY
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_packed_inputs_hold_each_token_once(lengths):
    longest = max(lengths)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    feeds = graph_inputs({"cumulative_sequence_length"}, ids, mask)
    assert feeds["input_ids"].tolist() == ids[mask == 1].tolist()
    ends = feeds["cumulative_sequence_length"]
    assert ends.dtype == np.int32
    assert np.diff(ends).tolist() == lengths
    for row, (start, end) in enumerate(itertools.pairwise(ends)):
        assert feeds["input_ids"][start:end].tolist() == ids[row, : lengths[row]].tolist()
        assert feeds["position_ids"][start:end].tolist() == list(range(lengths[row]))
    offsets = feeds["token_offset"]
    assert (offsets.dtype, offsets.shape) == (np.dtype(np.int32), mask.shape)
    assert offsets.ravel()[: sum(lengths)].tolist() == np.flatnonzero(mask).tolist()
    assert sorted(offsets.ravel().tolist()) == list(range(mask.size))
