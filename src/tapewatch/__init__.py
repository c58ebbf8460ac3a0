"""tapewatch: a real-time scanner for US equities."""

from importlib.metadata import version

__version__ = version("tapewatch")
