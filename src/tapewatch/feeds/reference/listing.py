"""What providers' listings have in common: exchanges and their tapes, symbols that can be, texts that can be shown."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime
from zoneinfo import ZoneInfo

from tapewatch.documents import SYMBOL_PATTERN
from tapewatch.engine.columns import SECOND_NS

TAPE_OF_MIC: Mapping[str, str] = {
    "XNYS": "A",
    "XASE": "B",
    "ARCX": "B",
    "BATS": "B",
    "IEXG": "B",
    "XNAS": "C",
    "XNGS": "C",
    "XNMS": "C",
    "XNCM": "C",
    "OTCM": "O",
}
NEW_YORK = ZoneInfo("America/New_York")
_LONGEST_NAME = 200


def is_symbol(text: str) -> bool:
    """Whether the tape could have it."""
    return re.fullmatch(SYMBOL_PATTERN, text) is not None


def shown(text: str | None) -> str | None:
    """A provider's text without what cannot be shown, cut to a bearable length; None when nothing is left."""
    plain = "".join(c for c in unicodedata.normalize("NFC", text or "") if not unicodedata.category(c).startswith("C"))
    return plain.strip()[:_LONGEST_NAME] or None


def new_york_date(ts_ns: int) -> date:
    """The calendar's date in New York."""
    return datetime.fromtimestamp(ts_ns // SECOND_NS, NEW_YORK).date()
