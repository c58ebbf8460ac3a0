"""The ledger: what a tape says must exist, and whether it does.

`oracle` works out bars and alerts from a tape alone, row by row, in plain dictionaries. It shares no code with the
engine; what they have in common is the documentation and the tables in `tapewatch/reference`. `checker` compares what
must exist with witnesses: the store, and what clients received.
"""
