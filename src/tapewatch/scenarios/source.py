"""YAML read strictly: every value knows its line, and what YAML would guess is not guessed.

Owns the file's syntax and its errors. It never says what a field means. Keys are texts, and no key stands twice in one
mapping. A plain number is a number, `true`, `false` and `null` are what they are; everything else is text: ``09:31:05``
is no number to the base of sixty and the symbol ``ON`` is not true. Tags, anchors and aliases are refused.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from tapewatch.errors import Invalid

LARGEST_BYTES = 1_000_000
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge", "value")
}
_INDEX_OR_NAME = re.compile(r"\[(\d+)\]|([^.\[]+)")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line on which it starts."""

    value: Any
    """``dict[str, Node]``, ``list[Node]``, text, int, float, bool or None."""
    line: int
    text: str = ""
    """A scalar as it is written."""
    is_block: bool = False
    """Written as ``|`` and lines below."""
    indent: int = 0
    """Of the lines of a block: how far they are moved in."""

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)

    @property
    def plain(self) -> Any:
        """The value without lines, as JSON would give it."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    def at(self, path: str) -> "Node":
        """The node at a path such as ``[0].conditions[1].value``, or the deepest one on the way that exists."""
        node = self
        for index, name in _INDEX_OR_NAME.findall(path):
            if index and isinstance(node.value, list) and int(index) < len(node.value):
                node = node.value[int(index)]
            elif name and isinstance(node.value, dict) and name in node.value:
                node = node.value[name]
            else:
                break
        return node


@dataclass(frozen=True, slots=True)
class Source:
    """A file's place in errors, and its fields read one by one."""

    path: Path

    def invalid(self, line: int, why: str) -> Invalid:
        return Invalid(f"{self.path} line {line}", why)

    def read(self) -> Node:
        """The file as a tree; `Invalid` names the line."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise Invalid(str(self.path), f"cannot be read: {error.strerror}") from None
        if len(data) > LARGEST_BYTES:
            raise Invalid(str(self.path), f"is larger than {LARGEST_BYTES:,} bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(data.count(b"\n", 0, error.start) + 1, "is not UTF-8") from None
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self.invalid(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self.invalid(line, f"has a character that YAML does not allow (U+{error.character:04X})") from None
        except RecursionError:
            raise Invalid(str(self.path), "is nested too deeply") from None
        if root is None:
            raise self.invalid(1, "is empty")
        return self._node(root, set(), text.split("\n"))

    def _node(self, node: yaml.Node, seen: set[int], lines: list[str]) -> Node:
        line = node.start_mark.line + 1
        if id(node) in seen:
            raise self.invalid(line, "has an alias to here, which a scenario may not have")
        seen.add(id(node))
        if node.tag not in _PLAIN_TAGS:
            raise self.invalid(line, f"has a tag, {node.tag!r}, which a scenario may not have")
        if isinstance(node, yaml.SequenceNode):
            return Node([self._node(item, seen, lines) for item in node.value], line)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, seen, lines), line)
        if isinstance(node, yaml.ScalarNode):
            value, text, is_block = self._scalar(node, line), str(node.value), node.style == "|"
            return Node(value, line, text, is_block=is_block, indent=_indent(text, lines[line:]) if is_block else 0)
        raise self.invalid(line, "is nothing that a scenario may have")

    def _mapping(self, node: yaml.MappingNode, seen: set[int], lines: list[str]) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self.invalid(line, "a key must be text")
            if key.value in found:
                raise self.invalid(line, f"the key {key.value!r} stands twice; first on line {found[key.value].line}")
            inside = self._node(value, seen, lines)
            # A list or mapping is where its key is, also if it starts on the next line.
            found[key.value] = replace(inside, line=line) if isinstance(inside.value, dict | list) else inside
        return found

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        text = str(node.value)
        if node.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            try:
                return int(text)
            except ValueError:
                raise self.invalid(line, "holds a number with too many digits") from None
        return float(text) if _FLOAT.fullmatch(text) else text

    # -- fields -------------------------------------------------------------------------------------------------------

    def fields(self, node: Node, what: str, *, needed: Collection[str] = (), optional: Collection[str] = ()) -> Any:
        """The fields of a mapping by name, as ``dict[str, Node]``."""
        if not isinstance(node.value, dict):
            raise self.invalid(node.line, f"{what} must be fields with values")
        known = [*needed, *optional]
        for name, value in node.value.items():
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"
                raise self.invalid(value.line, f"{name!r} is not a field of {what}{hint}")
        for name in needed:
            if name not in node.value:
                raise self.invalid(node.line, f"{what} lacks {name!r}")
        return node.value

    def pairs(self, node: Node, what: str) -> dict[str, Node]:
        """A mapping whose keys the author chose."""
        if not isinstance(node.value, dict):
            raise self.invalid(node.line, f"{what} must be names with values")
        return node.value

    def items(self, node: Node, what: str) -> list[Node]:
        if not isinstance(node.value, list):
            raise self.invalid(node.line, f"{what} must be a list")
        return node.value

    def word(self, node: Node, what: str) -> str:
        """A scalar as it is written."""
        if isinstance(node.value, dict | list) or not node.text.strip():
            raise self.invalid(node.line, f"{what} must be one word or text")
        return node.text.strip()


def _indent(block: str, lines: list[str]) -> int:
    """How far a block's lines, of which these are the first, are moved in in the file."""
    for inside, written in zip(block.split("\n"), lines, strict=False):
        if inside.strip():
            return len(written.rstrip("\r")) - len(inside)
    return 0
