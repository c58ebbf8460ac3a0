"""A feed's words as numbers: what `Batch.symbols` and `Batch.conditions` are made of."""

from collections.abc import Sequence

import numpy as np

from tapewatch.engine.columns import I64


class Dictionary:
    """Texts to codes, growing; `names` stays the same object as long as nothing new appears."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self._codes: dict[str, int] = {name: code for code, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, names: Sequence[str]) -> I64:
        """Shape (len(names),): the code of each; new names get the next ones."""
        try:
            return np.fromiter(map(self._codes.__getitem__, names), np.int64, len(names))
        except KeyError:
            fresh = [name for name in dict.fromkeys(names) if name not in self._codes]
            self._codes.update((name, len(self.names) + i) for i, name in enumerate(fresh))
            self.names += tuple(fresh)
            return np.fromiter(map(self._codes.__getitem__, names), np.int64, len(names))
