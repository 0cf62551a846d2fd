"""Shards hold all rows of the input, each once and in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.bulk.plan import Plan, shards_of_process

files = st.lists(st.integers(0, 20), min_size=1, max_size=8)


@given(files, st.integers(1, 25))
def test_shards_hold_each_row_of_each_file_once_and_in_order(rows: list[int], size: int) -> None:
    plan = Plan(rows, size)
    found = [
        (segment.file, row)
        for shard in range(plan.shards)
        for segment in plan.segments(shard)
        for row in range(segment.first, segment.first + segment.count)
    ]

    assert found == [(file, row) for file, count in enumerate(rows) for row in range(count)]
    assert [plan.locate(row) for row in range(plan.rows)] == found


@given(files, st.integers(1, 25))
def test_all_shards_but_the_last_one_are_full(rows: list[int], size: int) -> None:
    plan = Plan(rows, size)
    sizes = [plan.rows_of(shard) for shard in range(plan.shards)]

    assert sizes[:-1] == [size] * (plan.shards - 1)
    assert sum(sizes) == plan.rows
    assert all(
        sum(segment.count for segment in plan.segments(shard)) == rows_of
        for shard, rows_of in enumerate(sizes)
    )


def test_an_empty_input_has_one_empty_shard() -> None:
    plan = Plan([0, 0], 10)

    assert (plan.shards, plan.rows_of(0), list(plan.segments(0))) == (1, 0, [])


@given(st.integers(1, 40), st.integers(1, 9))
def test_processes_share_all_shards(shards: int, processes: int) -> None:
    shares = [shards_of_process(shards, f"{i}/{processes}") for i in range(1, processes + 1)]

    assert sorted(shard for share in shares for shard in share) == list(range(shards))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("process", ["0/4", "5/4", "1", "1/0", "a/b", "1/4/2", "", "-1/4"])
def test_a_wrong_number_of_a_process_is_an_error(process: str) -> None:
    with pytest.raises(ValueError, match="first of four"):
        shards_of_process(10, process)
