"""What schemathesis must be told: how to make the texts that only code can tell from others."""

import unicodedata

import schemathesis
from hypothesis import strategies as st

from tapewatch.serve.api.alerts import write_cursor

# Composing a text changes its length, and a limit of length holds for the composed one.
PLAIN_TEXT = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn")), max_size=100).filter(
    lambda text: unicodedata.is_normalized("NFC", text)
)
CURSOR = st.builds(
    write_cursor, st.integers(0, 2**63 - 1), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", fullmatch=True)
)

schemathesis.openapi.format("plain-text", PLAIN_TEXT)
schemathesis.openapi.format("alert-cursor", CURSOR)
