"""The symbol table: names to the engine's own indices, in order of first appearance; and whose a symbol is."""

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.frozen import Carried

Index = NDArray[np.intp]


def partition_of(symbol: str, partitions: int) -> int:
    """Fixed for the life of an installation; the same in every process."""
    return crc32(symbol.encode()) % partitions


class SymbolTable:
    """Grows only. Arrays of the engine are as wide as `capacity`, which grows by at least a quarter, so it is rare."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.capacity = 64
        self.remake()

    def remake(self, _: None = None) -> None:
        """What is known of the names."""
        self._index: dict[str, int] = {name: place for place, name in enumerate(self.names)}
        self._dictionary: tuple[str, ...] | None = None
        self._translation: Index = np.zeros(0, np.intp)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def index(self, name: str) -> int:
        return self._index[name]

    def translate(self, dictionary: tuple[str, ...]) -> Index:
        """For each name of a batch's dictionary its index here; new names are added.

        A feed passes the same dictionary object with each batch, so the last translation is kept.
        """
        if dictionary is not self._dictionary:
            fresh = [name for name in dict.fromkeys(dictionary) if name not in self._index]
            if fresh:
                start = len(self.names)
                self._index.update((name, start + i) for i, name in enumerate(fresh))
                self.names += tuple(fresh)
                if self.capacity < len(self.names):
                    wanted = max(len(self.names), self.capacity * 5 // 4)
                    self.capacity = (wanted + 63) // 64 * 64
            self._translation = np.array([self._index[name] for name in dictionary], dtype=np.intp)
            self._dictionary = dictionary
        return self._translation


SYMBOL_CARRIED = (Carried(SymbolTable, remade=("_index", "_dictionary", "_translation")),)
