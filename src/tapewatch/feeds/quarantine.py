"""What a provider sent that cannot be used: counted by reason, with samples for the operator."""

from collections import Counter, deque
from collections.abc import Mapping

_SAMPLES = 5
_LONGEST_SAMPLE = 300


class Quarantine:
    """Bounded: the newest few samples of each reason, each cut to a few hundred characters. Never secrets: a sample is
    something that the provider sent, frames of a handshake do not come here, and words to `hide` are blotted out.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._samples: dict[str, deque[str]] = {}
        self._hidden: set[str] = set()

    def hide(self, *words: str) -> None:
        """Never show these."""
        self._hidden.update(word for word in words if word)

    def add(self, reason: str, sample: object, *, count: int = 1) -> None:
        """Count something by `reason`; `sample` is one of them. A count of 0 keeps the sample of what was no fault."""
        self.counts[reason] += count
        text = sample.decode("utf-8", "replace") if isinstance(sample, bytes) else str(sample)
        for word in self._hidden:
            text = text.replace(word, "***")
        self._samples.setdefault(reason, deque(maxlen=_SAMPLES)).append(text[:_LONGEST_SAMPLE])

    @property
    def samples(self) -> Mapping[str, list[str]]:
        """Reason -> samples, oldest first."""
        return {reason: list(kept) for reason, kept in self._samples.items()}
