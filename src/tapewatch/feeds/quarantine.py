"""What a provider sent that cannot be used: counted by reason, with samples for the operator."""

from collections import Counter, deque
from collections.abc import Mapping

_SAMPLES = 5
_LONGEST_SAMPLE = 300


class Quarantine:
    """Bounded: the newest few samples of each reason, each cut to a few hundred characters. Never secrets: a sample is
    something that the provider sent, and frames of a handshake do not come here.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._samples: dict[str, deque[str]] = {}

    def add(self, reason: str, sample: object, *, count: int = 1) -> None:
        """Count something by `reason`; `sample` is one of them."""
        self.counts[reason] += count
        text = sample.decode("utf-8", "replace") if isinstance(sample, bytes) else str(sample)
        self._samples.setdefault(reason, deque(maxlen=_SAMPLES)).append(text[:_LONGEST_SAMPLE])

    @property
    def samples(self) -> Mapping[str, list[str]]:
        """Reason -> samples, oldest first."""
        return {reason: list(kept) for reason, kept in self._samples.items()}
