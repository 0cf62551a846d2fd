"""Lexical weights of BGE-M3: the weight of each token of a text, and scores by them.

The weights of a batch become ragged rows, as in a CSR matrix, in a few passes over whole arrays.
Dictionaries, SciPy matrices and scores are made from those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import list_items, type_name
from bge_runtime.system import once

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_DENSE_COST = 512
"""Cells of a dense product that take as long as one product of two entries found by index."""

_BLOCK_CELLS = 1 << 24
"""Maximum numbers in a temporary array of `matching_scores`, except for very many rows: 64 MiB."""


@dataclass(frozen=True, eq=False, slots=True)
class LexicalWeights:
    """The weights of the tokens of some texts.

    Row ``i`` is ``indptr[i]:indptr[i + 1]`` of the other two arrays. From a model, the ids in
    a row are unique, in the order in which they first appear in the text unless asked for by
    id, and their weights are above zero.

    Attributes:
        indptr: Where rows start and end, int64. Shape: ``(n + 1,)``.
        token_ids: Ids in the vocabulary, int32. Shape: ``(entries,)``.
        weights: Their weights, float32. Shape: ``(entries,)``.
    """

    indptr: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def astype(self, dtype: np.dtype[Any]) -> LexicalWeights:
        """Return a copy with weights of another type."""
        return replace(self, weights=self.weights.astype(dtype, copy=False))

    @classmethod
    def from_tokens(
        cls,
        token_weights: NDArray[np.float32],
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        *,
        excluded: Sequence[int],
        by_id: bool = False,
    ) -> LexicalWeights:
        """Return the largest weight of each token of each text.

        Args:
            token_weights: The graph's output. Shape: ``(texts, tokens)``.
            input_ids: The same shape.
            attention_mask: 0 for padding, which is left out. The same shape.
            excluded: Ids left out: [CLS], end, padding and unknown.
            by_id: Sort the tokens of a text by id, as a sparse matrix needs them, and not in
                the order of the text.
        """
        rows, width = input_ids.shape
        ids = input_ids.astype(np.uint32)
        keep = token_weights > 0
        keep &= attention_mask != 0
        for first, last in _runs(excluded):
            # For ids below `first` the difference wraps around to a large number.
            keep &= (ids - np.uint32(first) if first else ids) > last - first
        counts = np.count_nonzero(keep, axis=1)
        if not counts.any():
            return cls(np.zeros(rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))

        # Sorting by (id, column) groups the repeats of a token, with its first place in front. Up
        # to 8192 tokens of a vocabulary of 2**18, both fit into 31 bits of one number.
        column_bits = (width - 1).bit_length()
        narrow = int(ids.max()).bit_length() + column_bits < 32
        number: Any = np.uint32 if narrow else np.uint64
        keys = ids.astype(number)
        keys <<= number(column_bits)
        keys |= np.arange(width, dtype=number)
        keys |= keep.astype(number) - number(1)  # left out: all ones, which sorts last
        keys.sort(axis=1)
        found = keys[keys != ~number(0)]
        places = np.repeat(np.arange(0, rows * width, width), counts)
        places += (found & number((1 << column_bits) - 1)).astype(np.int64)
        found >>= number(column_bits)
        is_first = np.empty(len(found), dtype=np.bool_)
        np.not_equal(found[1:], found[:-1], out=is_first[1:])
        ends = np.cumsum(counts)
        is_first[(ends - counts)[counts > 0]] = True
        firsts, repeats = np.flatnonzero(is_first), np.flatnonzero(~is_first)
        weights = token_weights.ravel().take(places)
        largest = weights.take(firsts)
        # The position of a repeat, minus the repeats before it, counts the firsts before it.
        tokens = repeats - np.arange(1, len(repeats) + 1)
        np.maximum.at(largest, tokens, weights.take(repeats))
        indptr = np.zeros(rows + 1, dtype=np.int64)
        if by_id:
            indptr[1:] = np.searchsorted(firsts, ends)
            return cls(indptr, found.take(firsts).astype(np.int32), largest)

        # Writing each to where it was first seen restores the order of the text.
        kept = np.zeros(rows * width, dtype=np.float32)
        kept[places.take(firsts)] = largest
        has_weight = kept > 0
        where = np.flatnonzero(has_weight)
        np.cumsum(np.count_nonzero(has_weight.reshape(rows, width), axis=1), out=indptr[1:])
        return cls(indptr, ids.ravel().take(where).astype(np.int32), kept.take(where))

    @classmethod
    def from_dicts(cls, weights: Mapping[Any, Any] | Sequence[Mapping[Any, Any]]) -> LexicalWeights:
        """Return the weights in dictionaries, or in one; keys may be ids or their decimal form.

        Raises:
            TypeError: If they are not dictionaries.
            ValueError: If a key is not a token id.
        """
        rows = as_rows(weights)
        try:
            ids = np.fromiter(map(int, chain.from_iterable(rows)), dtype=np.int32)
        except ValueError as error:
            raise ValueError(
                f"keys of lexical weights must be token ids ({error}); to match by other keys, "
                "pass lists of dictionaries on both sides"
            ) from error
        values = chain.from_iterable(row.values() for row in rows)
        return cls(_row_ends(rows), ids, np.fromiter(values, dtype=np.float32, count=len(ids)))

    @classmethod
    def concatenate(
        cls, parts: Sequence[LexicalWeights], positions: NDArray[np.integer]
    ) -> LexicalWeights:
        """Return the weights of several batches, with rows in the order of the call.

        Args:
            parts: The weights of each batch.
            positions: Row in the result of each row of the parts, in turn: each of
                0 to n - 1 once. Shape: ``(n,)``.
        """
        lengths = [np.empty(0, np.int64), *(np.diff(part.indptr) for part in parts)]
        ids = [np.empty(0, np.int32), *(part.token_ids for part in parts)]
        weights = [np.empty(0, np.float32), *(part.weights for part in parts)]
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        joined = cls(indptr, np.concatenate(ids), np.concatenate(weights))
        source = np.empty(len(joined), dtype=np.int64)
        source[positions] = np.arange(len(joined))
        return joined.take(source)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def take(self, rows: NDArray[np.integer]) -> LexicalWeights:
        """Return a copy with these rows, in this order."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        entries = _ranges(self.indptr[:-1][rows], lengths)
        return LexicalWeights(indptr, self.token_ids[entries], self.weights[entries])

    def to_dicts(self) -> list[defaultdict[str, Any]]:
        """Return FlagEmbedding's dictionaries: from the id as a string to a NumPy scalar."""
        size = int(self.token_ids.max(initial=0)) + 1
        keys = _decimals(1 << (size - 1).bit_length())[self.token_ids].tolist()
        values = list(self.weights)
        ends = self.indptr.tolist()
        rows = []
        for start, end in pairwise(ends):
            row: defaultdict[str, Any] = defaultdict(int)
            row.update(zip(keys[start:end], values[start:end], strict=True))
            rows.append(row)
        return rows

    def to_csr(self, vocab_size: int) -> csr_array:
        """Return a SciPy matrix with sorted indices.

        Args:
            vocab_size: Columns of the matrix.

        Returns:
            float32. Shape: ``(n, vocab_size)``.

        Raises:
            ImportError: If SciPy is not installed.
            ValueError: If a token id is not below ``vocab_size``.
        """
        largest = int(self.token_ids.max(initial=-1))
        if largest >= vocab_size:  # SciPy does not check, and would write past the end
            raise ValueError(
                f"token id {largest} needs a vocab_size above it, but vocab_size is {vocab_size}"
            )
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError(
                f"sparse matrices need SciPy ({error}). Run `pip install 'bge-runtime[sparse]'`"
            ) from error
        entries = (self.weights, self.token_ids, self.indptr)
        matrix = csr_array(entries, shape=(len(self), vocab_size))
        if matrix.has_sorted_indices:
            return matrix.copy()  # the matrix shares its memory with these weights
        # Transposed twice, the indices are sorted: faster than ``sort_indices``.
        return matrix.tocsc().tocsr()


LexicalRows: TypeAlias = "LexicalWeights | Sequence[Mapping[Any, Any]]"
"""The weights of several texts, in either form."""


def as_rows(weights: object) -> list[Mapping[Any, Any]]:
    """Return a list of dictionaries of weights, or of a single one.

    Raises:
        TypeError: If they are something else.
    """
    if isinstance(weights, Mapping):
        return [weights]
    name = "lexical_weights"
    rows = list_items(weights, name, "a dictionary or a list of dictionaries")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name}[{index}] must be a dictionary, not {type_name(row)}")
    return rows


def matching_scores(left: Any, right: Any) -> Any:
    """Return the scores of texts against texts: sums, over shared tokens, of products of weights.

    Either side is a dictionary, a list of them, `LexicalWeights` or a SciPy sparse matrix.
    Between dictionaries, keys match if they are equal, so ``"5"`` does not match ``5``.
    Against the other two forms, keys are token ids, which may be strings.

    Returns:
        The sum for two dictionaries, in the type that their values add up to. Else a matrix
        in the weights' own precision, float32 at least. Shape: ``(len(left), len(right))``.

    Raises:
        ValueError: If one side is a single text and the other is not.
    """
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return sum(weight * right[key] for key, weight in left.items() if key in right)
    sides = [_checked_rows(left), _checked_rows(right)]
    if all(isinstance(side, list) for side in sides):
        return _product(*_entries_by_key(*sides))
    return _product(*(_entries_by_id(side) for side in sides))


def lexical_pair_scores(left: LexicalWeights, right: LexicalWeights) -> NDArray[np.float32]:
    """Return the score of each text against the one in the same row of the other side.

    Returns:
        Shape: ``(n,)``.

    Raises:
        ValueError: If there are not as many texts on both sides.
    """
    if len(left) != len(right):
        raise ValueError(
            f"pairs need as many texts on both sides, not {len(left)} and {len(right)}"
        )
    left_rows, right_rows = _row_of_entries(left.indptr), _row_of_entries(right.indptr)
    _, in_left, in_right = np.intersect1d(
        left_rows << 32 | left.token_ids,
        right_rows << 32 | right.token_ids,
        assume_unique=True,
        return_indices=True,
    )
    products = left.weights[in_left] * right.weights[in_right]
    return np.bincount(left_rows[in_left], products, minlength=len(left)).astype(np.float32)


@once()  # sizes are powers of two: together at most twice the largest
def _decimals(size: int) -> NDArray[np.object_]:
    """Return the decimal forms of 0 to size - 1; 16 MB for the vocabulary of BGE-M3."""
    return np.array([str(number) for number in range(size)], dtype=np.object_)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _row_ends(rows: Sequence[Mapping[Any, Any]]) -> NDArray[np.int64]:
    ends = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=ends[1:])
    return ends


def _row_of_entries(indptr: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``start, start + 1, ...`` for each start, one after the other."""
    ends = np.cumsum(lengths)
    written: NDArray[np.int64] = np.repeat(starts - ends + lengths, lengths)
    written += np.arange(len(written))
    return written


class _Entries(NamedTuple):
    """The entries of a sparse matrix, each place at most once."""

    height: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: NDArray[Any]

    def where(self, chosen: NDArray[np.bool_]) -> _Entries:
        """Return the entries in the chosen columns."""
        keep = np.flatnonzero(chosen[self.columns])
        return _Entries(self.height, self.rows[keep], self.columns[keep], self.weights[keep])


def _checked_rows(side: Any) -> Any:
    if isinstance(side, LexicalWeights) or hasattr(side, "tocsr"):
        return side
    if isinstance(side, list | tuple) and all(isinstance(row, Mapping) for row in side):
        return list(side)
    raise ValueError(
        "lexical weights are matched as two dictionaries or as two lists of dictionaries, "
        f"LexicalWeights or sparse matrices; one side is {type(side).__name__}"
    )


def _entries_by_id(side: Any) -> _Entries:
    if isinstance(side, list):
        side = LexicalWeights.from_dicts(side)
    if not isinstance(side, LexicalWeights):
        matrix = side.tocsr(copy=True)
        matrix.sum_duplicates()
        side = LexicalWeights(matrix.indptr, matrix.indices, matrix.data)
    ids = side.token_ids.astype(np.int64)
    return _Entries(len(side), _row_of_entries(side.indptr), ids, side.weights)


def _entries_by_key(
    left: list[Mapping[Any, Any]], right: list[Mapping[Any, Any]]
) -> tuple[_Entries, _Entries]:
    keys: dict[Hashable, None] = dict.fromkeys(chain.from_iterable(right))
    column_of = dict(zip(keys, range(len(keys)), strict=True))
    unmatched = len(keys)  # a further column, empty on the right
    sides = []
    for rows in (left, right):
        columns = map(column_of.get, chain.from_iterable(rows), repeat(unmatched))
        ends = _row_ends(rows)
        sides.append(
            _Entries(
                len(rows),
                _row_of_entries(ends),
                np.fromiter(columns, dtype=np.int64, count=ends[-1]),
                _numbers([value for row in rows for value in row.values()]),
            )
        )
    return sides[0], sides[1]


def _numbers(values: list[Any]) -> NDArray[Any]:
    """Return scalars as an array: float16 and float32 as float32, all others as float64."""
    kinds = set(map(type, values))
    dtype = np.float32 if kinds <= {np.float16, np.float32} else np.float64
    return np.fromiter(values, dtype=dtype, count=len(values))


def _product(left: _Entries, right: _Entries) -> NDArray[Any]:
    """Return the left matrix multiplied by the right one transposed.

    Tokens that are in many texts of both sides go into a dense product. For every other token, its
    few texts are looked up.
    """
    dtype = np.result_type(left.weights.dtype, right.weights.dtype, np.float32)
    scores = np.zeros((left.height, right.height), dtype=dtype)
    width = 1 + max(int(side.columns.max(initial=0)) for side in (left, right))
    in_left = np.bincount(left.columns, minlength=width)
    in_right = np.bincount(right.columns, minlength=width)
    products = in_left * in_right
    frequent = (products > 0) & (products >= scores.size // _DENSE_COST)
    if not (np.isfinite(left.weights).all() and np.isfinite(right.weights).all()):
        frequent[:] = False  # infinity times zero would be NaN
    rare = (products > 0) & ~frequent
    _add_dense(scores, left.where(frequent), right.where(frequent), np.flatnonzero(frequent))
    _add_by_index(scores, left.where(rare), right.where(rare), np.where(rare, in_right, 0))
    return scores


def _add_dense(
    scores: NDArray[Any], left: _Entries, right: _Entries, columns: NDArray[np.int64]
) -> None:
    step = max(64, _BLOCK_CELLS // max(1, left.height + right.height))
    for start in range(0, len(columns), step):
        block = columns[start : start + step]
        matrices = []
        for side in (left, right):
            place = np.searchsorted(block, side.columns)
            place[place == len(block)] = 0
            here = np.flatnonzero(block[place] == side.columns)
            matrix = np.zeros((side.height, len(block)), dtype=scores.dtype)
            matrix[side.rows[here], place[here]] = side.weights[here]
            matrices.append(matrix)
        scores += matrices[0] @ matrices[1].T


def _add_by_index(
    scores: NDArray[Any], left: _Entries, right: _Entries, in_right: NDArray[np.int64]
) -> None:
    if not len(left.columns):
        return
    by_column = np.argsort(right.columns, kind="stable")
    rows, weights = right.rows[by_column], right.weights[by_column]
    starts = (np.cumsum(in_right) - in_right)[left.columns]
    lengths = in_right[left.columns]
    ends = np.cumsum(lengths)
    flat = scores.reshape(-1)
    step = _BLOCK_CELLS // 16
    cuts = np.searchsorted(ends, np.arange(0, int(ends[-1]), step))
    for first, last in zip(cuts, [*cuts[1:], len(ends)], strict=True):
        part = slice(first, last)
        found = _ranges(starts[part], lengths[part])
        cells = np.repeat(left.rows[part] * right.height, lengths[part]) + rows[found]
        products = np.repeat(left.weights[part].astype(scores.dtype), lengths[part])
        products *= weights[found]
        np.add.at(flat, cells, products)
