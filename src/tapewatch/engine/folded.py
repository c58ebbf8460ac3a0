"""Arrays as bytes: what each is, and its data, without what says nothing.

Columns of symbols that do not exist yet are one column, and a row that holds one number throughout is that number.
Truth values are bits. Arrays are written and read one after the other; each begins on a whole word.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096
"""What a long column that is not of symbols is cut into."""
_FEWEST = 16
"""Rows that are shorter are stored as they are."""
DTYPES = ("float64", "float32", "int64", "int32", "int8", "uint64", "uint16", "uint8", "bool")
"""What arrays may be made of."""
PLACES = {np.dtype(name): place for place, name in enumerate(DTYPES)}
_BITS = {size: np.dtype(f"uint{8 * size}") for size in (1, 2, 4, 8)}


def whole_words(size: int) -> int:
    """Rounded up to whole words."""
    return (size + 7) // 8 * 8


class Folder:
    """Takes the arrays of an engine in which `count` of `capacity` symbols exist. `heads` say in JSON what each is, and
    `data` are the parts that are stored.
    """

    def __init__(self, *, count: int, capacity: int) -> None:
        self._count, self._capacity = count, capacity
        self.heads: list[list[Any]] = []
        self.data: list[NDArray[Any]] = []

    def add(self, array: NDArray[Any]) -> int:
        """Its number."""
        shape, place = list(array.shape), PLACES.get(array.dtype)
        if place is None:
            raise TypeError(f"arrays of {array.dtype} are no part of a state")
        columns = constant = 0
        if array.dtype == np.bool_:
            self._put(np.packbits(array))
        elif not array.ndim:
            self._put(array.reshape(1))
        else:
            rows, columns, rest = self._rows(array.view(_BITS[array.itemsize]))
            same = _constant(rows)
            constant = int(np.count_nonzero(same))
            if constant:
                self._put(np.packbits(same))
                self._put(np.ascontiguousarray(rows[same, 0]))
                rows = rows[~same]
            self._put(rows)
            if len(rest):
                self._put(rest)
        self.heads.append([place, shape, columns, constant])
        return len(self.heads) - 1

    def _rows(self, bits: NDArray[Any]) -> tuple[NDArray[Any], int, NDArray[Any]]:
        """The array as rows; how many columns of them are stored (0: it was cut into blocks), and what is left over."""
        if bits.ndim == 1 and len(bits) >= 2 * _BLOCK and len(bits) != self._capacity:
            whole = len(bits) // _BLOCK * _BLOCK
            return bits[:whole].reshape(-1, _BLOCK), 0, bits[whole:]
        width = bits.shape[-1]
        rows = bits.reshape(math.prod(bits.shape[:-1]), width)
        if width == self._capacity > self._count + 1:
            dead = rows[:, self._count :]
            if (dead == dead[:, :1]).all():  # the first of them stands for all
                return rows[:, : self._count + 1], self._count + 1, bits[:0].reshape(-1)
        return rows, width, bits[:0].reshape(-1)

    def _put(self, array: NDArray[Any]) -> None:
        self.data.append(array)


def _constant(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows that hold one and the same number throughout."""
    same = np.zeros(len(rows), np.bool_)
    width = rows.shape[1]
    if width >= _FEWEST and len(rows):
        first = rows[:, 0]
        middle, third = rows[:, width // 2], rows[:, width // 3]
        likely = np.flatnonzero((first == rows[:, -1]) & (first == middle) & (first == third))
        if len(likely) == len(rows):
            same[:] = (rows == rows[:, :1]).all(axis=1)
        else:
            same[likely] = [bool((rows[row] == rows[row, 0]).all()) for row in likely.tolist()]
    return same


def unfolded(heads: Sequence[Any], data: NDArray[np.uint8], count: int, most: int) -> list[NDArray[Any]]:
    """All arrays, each with memory of its own; `most` bytes of it. ValueError for what no `Folder` made."""
    arrays: list[NDArray[Any]] = []
    at = 0

    def take(dtype: np.dtype[Any], items: int) -> NDArray[Any]:
        nonlocal at
        size = items * dtype.itemsize
        if not 0 <= size <= len(data) - at:
            raise ValueError("columns are missing")
        start, at = at, at + whole_words(size)
        return data[start : start + size].view(dtype)

    for place, shape, columns, constant in heads:
        dtype = np.dtype(DTYPES[place])
        if len(shape) > 4 or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError("no shape of an array")
        items = math.prod(shape)
        most -= items * dtype.itemsize
        if most < 0 or max(shape, default=0) > most:
            raise ValueError("it would unfold to more than any state")
        if dtype == np.bool_:
            bits = take(np.dtype(np.uint8), (items + 7) // 8)
            arrays.append(np.unpackbits(bits, count=items).view(np.bool_).reshape(shape))
            continue
        word = _BITS[dtype.itemsize]
        array = np.empty(shape, word)
        if not shape:
            array[...] = take(word, 1)[0]
        elif not items:
            pass
        elif columns:
            if columns != shape[-1] and columns != count + 1:
                raise ValueError("no width of an array")
            rows = array.reshape(-1, shape[-1])
            _fill(rows[:, :columns], constant, take)
            rows[:, columns:] = rows[:, columns - 1 : columns]
        else:
            whole = items // _BLOCK * _BLOCK
            _fill(array.reshape(-1)[:whole].reshape(-1, _BLOCK), constant, take)
            array.reshape(-1)[whole:] = take(word, items - whole)
        arrays.append(array.view(dtype))
    if at != len(data):
        raise ValueError("columns are left over")
    return arrays


def _fill(rows: NDArray[Any], constant: int, take: Callable[[np.dtype[Any], int], NDArray[Any]]) -> None:
    length, width = rows.shape
    if not constant:
        rows[:] = take(rows.dtype, length * width).reshape(rows.shape)
        return
    bits = take(np.dtype(np.uint8), (length + 7) // 8)
    same = np.unpackbits(bits, count=length).view(np.bool_)
    if np.count_nonzero(same) != constant:
        raise ValueError("other rows than it says")
    rows[same] = take(rows.dtype, constant)[:, None]
    rows[~same] = take(rows.dtype, (length - constant) * width).reshape(-1, width)
