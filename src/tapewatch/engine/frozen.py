"""The engine's state as bytes, and back: whoever takes over goes on from there as if nothing had happened.

A walk over the objects of a state, by a whitelist of classes (`Carried`). Each attribute of theirs is carried, without
being named anywhere, unless its kind says that it is given anew (`given`: calendar, profile, catalogue) or made again
from the others (`remade`, by the class's own `remake`). What is met and not on the list is a broken invariant. An
object that is met twice is one object again.

The bytes: a head, two texts of JSON (the rules, and everything else), then the columns of all arrays. Columns of
symbols that do not exist yet, and rows in which nothing has happened, are a number each. Nothing in them can run code,
and how much they may unfold to is bounded; bytes that are damaged, or of another engine, are `Invalid`.

It leaves compression to its caller.
"""

import dis
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.folded import DTYPES, PLACES, Folder, unfolded, whole_words
from tapewatch.errors import Invalid

FORMAT = 1
"""One more whenever numbers of the state mean something else, though its classes are as they were."""
_MAGIC = b"tw state"
_HEAD = 8 + 8 + 16 + 3 * 8
"""The word, the format, the digest, and the lengths of the three parts."""
_WORDS = 1024
_PLAIN = frozenset({type(None), bool, int, float, str})
_MOST_BYTES, _BYTES_A_SYMBOL, _FOLDS = 1 << 28, 150_000, 8
"""What a state may unfold to: so much, so much for each symbol that it names, and so many times its own size."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A class whose instances may be part of a state."""

    cls: type[Any]
    given: tuple[str, ...] = ()
    """Attributes that are given anew, by these names without a leading underscore."""
    remade: tuple[str, ...] = ()
    """Attributes that are made again from the others. If the class has a `remake`, that is called, the parts of an
    object before the object; it gets what `keepsake` gave, or None.
    """
    by_value: bool = False
    """Equal instances are one."""


def attributes(cls: type[Any]) -> tuple[str, ...]:
    """What instances of the class consist of, in order of name: its fields, or what `__init__` and `remake` set."""
    if is_dataclass(cls):
        return tuple(sorted(field.name for field in fields(cls)))
    if issubclass(cls, tuple):
        return tuple(cls._fields)  # type: ignore[attr-defined]  # named tuples alone are whitelisted
    methods = [vars(base).get(name) for base in cls.__mro__[:-1] for name in ("__init__", "remake", "_compile")]
    return tuple(sorted({name for method in methods if method is not None for name in _set_by(method)}))


def _set_by(method: Any) -> Iterator[str]:
    """Attributes of its object that a method sets."""
    own = method.__code__.co_varnames[0]
    for loads, stores in pairwise(dis.get_instructions(method)):
        if stores.opname == "STORE_ATTR" and own in {loads.argval, *_last(loads.argval)}:
            yield stores.argval


def _last(names: Any) -> Any:
    """Of what one instruction may load at once."""
    return names[-1:] if isinstance(names, tuple) else ()


class Whitelist:
    """The whitelist of a state. `named` are functions and tables that are not stored, but told by their names."""

    def __init__(self, kinds: Iterable[Carried], named: Mapping[str, Any]) -> None:
        self.kinds = tuple(kinds)
        self.of = {kind.cls: place for place, kind in enumerate(self.kinds)}
        self.attributes = [() if issubclass(kind.cls, Enum) else attributes(kind.cls) for kind in self.kinds]
        self.carried = [
            tuple(name for name in names if name not in {*kind.given, *kind.remade})
            for kind, names in zip(self.kinds, self.attributes, strict=True)
        ]
        self.by_value = frozenset({frozenset, *(kind.cls for kind in self.kinds if kind.by_value)})
        self.named = dict(named)
        self.name_of = {id(value): name for name, value in named.items()}

    @cached_property
    def engine(self) -> str:
        """Differs when a class, or a number that its module or itself fixes, is not what it was."""
        told: list[Any] = [FORMAT, sys.byteorder, sorted(self.named)]
        for kind, names in zip(self.kinds, self.attributes, strict=True):
            cls = kind.cls
            own = {name: value for base in cls.__mro__[:-1] for name, value in vars(base).items()}
            module = vars(sys.modules[cls.__module__])
            constants = {name: value for name, value in module.items() if name == name.upper()}
            fixed = {name: value for name, value in {**own, **constants}.items() if _fixed(value) and "__" not in name}
            told.append([cls.__module__, cls.__qualname__, names, kind.given, kind.remade])
            told.append([[name, repr(value)] for name, value in sorted(fixed.items())])
        return blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def _fixed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_fixed, value))
    if isinstance(value, dict):
        return all(map(_fixed, value)) and all(map(_fixed, value.values()))
    return type(value) in {int, float, str, bool}


class Sealed(NamedTuple):
    """Objects that do not change, written once: `text`, and which objects have which number in it."""

    text: bytes
    places: dict[Any, int]
    objects: tuple[Any, ...]
    """Held, so that the numbers stay theirs."""


class _Writer:
    def __init__(self, kinds: Whitelist, columns: Folder, sealed: Sealed | None = None) -> None:
        self._kinds, self._columns = kinds, columns
        self._before = sealed.places if sealed is not None else {}
        self._first = len(self._before)
        self.places: dict[Any, int] = {}
        self.objects: list[Any] = []

    def value(self, value: Any) -> Any:
        """As JSON: plain values as themselves, all others as a list that begins with what they are."""
        if type(value) in _PLAIN:
            return value
        key = value if type(value) in self._kinds.by_value else id(value)
        place = self.places.get(key)
        if place is None:
            place = self._before.get(key)
        if place is not None:
            return ["r", place]
        if isinstance(value, Enum):
            return ["e", self._kinds.of[type(value)], value.value]
        if isinstance(value, slice):
            return ["i", value.start, value.stop]
        if isinstance(value, np.generic):
            return ["g", PLACES[value.dtype], value.tobytes().hex()]
        name = self._kinds.name_of.get(id(value))
        if name is not None:
            return ["n", name]
        self.places[key] = self._first + len(self.objects)
        self.objects.append(value)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        cls = type(value)
        if cls is np.ndarray:
            return ["a", self._columns.add(value)]
        if cls is tuple or cls is list:
            return ["t" if cls is tuple else "l", self._items(value)]
        if cls is dict or cls is Counter or cls is MappingProxyType:
            tag = "d" if cls is dict else "c" if cls is Counter else "m"
            return [tag, self._items(list(value)), self._items(list(value.values()))]
        if cls is frozenset or cls is set:
            return ["f" if cls is frozenset else "s", sorted(value)]
        place = self._kinds.of.get(cls)
        if place is None:
            raise TypeError(f"a {cls.__module__}.{cls.__qualname__} is no part of a state")
        own = getattr(value, "__dict__", None)
        if own is not None and own.keys() != set(self._kinds.attributes[place]):
            raise TypeError(f"{cls.__qualname__} has other attributes than its __init__ sets: {sorted(own)}")
        carried = [self.value(getattr(value, name)) for name in self._kinds.carried[place]]
        keepsake = getattr(value, "keepsake", None)
        return ["k", place, carried] if keepsake is None else ["k", place, carried, self.value(keepsake())]

    def _items(self, items: Sequence[Any]) -> list[Any]:
        return list(items) if _PLAIN.issuperset(map(type, items)) else [self.value(item) for item in items]


def seal(value: Any, kinds: Whitelist) -> Sealed:
    """Write what never changes and has no arrays, once for many times."""
    columns = Folder(count=0, capacity=0)
    writer = _Writer(kinds, columns)
    text = json.dumps(writer.value(value)).encode()
    if columns.heads:
        raise TypeError("an array changes")
    return Sealed(text, writer.places, tuple(writer.objects))


def freeze(
    root: Any, kinds: Whitelist, *, about: Mapping[str, Any], count: int, capacity: int, sealed: Sealed | None = None
) -> bytes:
    """The bytes of a state. `about` says for whom it is, as JSON; of `capacity` symbols `count` exist."""
    columns = Folder(count=count, capacity=capacity)
    sealed = seal(None, kinds) if sealed is None else sealed
    told = {
        "engine": kinds.engine,
        "about": dict(about),
        "symbols": count,
        "root": _Writer(kinds, columns, sealed).value(root),
        "arrays": columns.heads,
    }
    text = json.dumps(told).encode()
    texts = np.frombuffer(sealed.text + text, np.uint8)
    parts = [texts, *columns.data]
    size = sum(whole_words(part.nbytes) for part in columns.data)
    body = np.empty(whole_words(len(texts)) + size, np.uint8)
    at = 0
    for part in parts:
        here, after = at + part.nbytes, at + whole_words(part.nbytes)
        body[at:here].view(part.dtype).reshape(part.shape)[...] = part
        body[here:after] = 0
        at = after
    sizes = np.array([len(sealed.text), len(text), size], "<u8").tobytes()
    return b"".join((_MAGIC, FORMAT.to_bytes(8, "little"), _digest(sizes, body), sizes, body.data))


def _digest(sizes: bytes, body: NDArray[np.uint8]) -> bytes:
    """Of sums over rows and columns of words, which takes a twentieth of the time of a digest of all bytes."""
    words = body.view(np.uint64)
    whole = len(words) // _WORDS * _WORDS
    table = words[:whole].reshape(-1, _WORDS)
    digest = blake2b(sizes, digest_size=16)
    digest.update(table.sum(axis=0, dtype=np.uint64).tobytes())
    digest.update(table.sum(axis=1, dtype=np.uint64).tobytes())
    digest.update(words[whole:].tobytes())
    return digest.digest()


class Frozen:
    """Bytes that are whole and of this engine: what they are about can be asked before anything is made of them."""

    def __init__(self, state: bytes, kinds: Whitelist) -> None:
        self._kinds = kinds
        if state[:8] != _MAGIC or len(state) < _HEAD:
            raise Invalid("state", "is no state of an engine")
        if state[8:16] != FORMAT.to_bytes(8, "little"):
            raise Invalid("state", "is of another format")
        sealed, told, size = np.frombuffer(state, "<u8", 3, 32).tolist()
        start = _HEAD + whole_words(sealed + told)
        if size % 8 or start + size != len(state):
            raise Invalid("state", "is damaged: it has another length than it says")
        if _digest(state[32:_HEAD], np.frombuffer(state, np.uint8, offset=_HEAD)) != state[16:32]:
            raise Invalid("state", "is damaged: its digest is another")
        self._data = np.frombuffer(state, np.uint8, size, start)
        self._texts = state[_HEAD : _HEAD + sealed], state[_HEAD + sealed : _HEAD + sealed + told]
        with _sound():
            self._told = json.loads(self._texts[1])
            engine, self.about = self._told["engine"], self._told["about"]
            self._symbols = self._told["symbols"]
            if not isinstance(self.about, dict) or not 0 <= self._symbols <= len(state):
                raise TypeError("it is about nothing")
        if engine != kinds.engine:
            raise Invalid("state", "is of another engine")

    def check(self, about: Mapping[str, Any]) -> None:
        """`Invalid` if it was made for somebody else."""
        for name, wanted in about.items():
            if self.about.get(name) != wanted:
                raise Invalid("state", f"is of another {name}: {str(self.about.get(name))[:64]} and not {wanted}")

    def thaw(self, given: Mapping[str, Any], *, most_bytes: int = 0) -> Any:
        """The object. `most_bytes`: what it may unfold to beyond what any state of so many symbols does."""
        most = _MOST_BYTES + most_bytes + self._symbols * _BYTES_A_SYMBOL + len(self._data) * _FOLDS
        with _sound():
            arrays = unfolded(self._told["arrays"], self._data, self._symbols, most)
            reader = _Reader(self._kinds, arrays, given)
            reader.value(json.loads(self._texts[0]))
            root = reader.value(self._told["root"])
            reader.remake()
        return root


class _sound:  # noqa: N801  # reads as a clause of `with`
    """Whatever makes no sense within is one error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        nonsense = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
        if isinstance(error, nonsense):
            raise Invalid("state", f"makes no sense: {str(error)[:200]}") from None


class _Reader:
    def __init__(self, kinds: Whitelist, arrays: Sequence[NDArray[Any]], given: Mapping[str, Any]) -> None:
        self._kinds, self._arrays, self._given = kinds, arrays, given
        self._objects: list[Any] = []
        self._keepsakes: dict[int, Any] = {}

    def remake(self) -> None:
        """What is not carried is made again, the parts of an object before the object."""
        for place in reversed(range(len(self._objects))):
            remake = getattr(self._objects[place], "remake", None)
            if remake is not None:
                remake(self._keepsakes.get(place))

    def value(self, told: Any) -> Any:
        if type(told) in _PLAIN:
            return told
        tag, *rest = told
        match tag:
            case "r":
                return self._objects[rest[0]]
            case "e":
                return self._kinds.kinds[rest[0]].cls(rest[1])
            case "i":
                return slice(*rest)
            case "g":
                return np.frombuffer(bytes.fromhex(rest[1]), DTYPES[rest[0]])[0]
            case "n":
                return self._kinds.named[rest[0]]
        place = len(self._objects)
        self._objects.append(None)
        self._objects[place] = made = self._object(place, tag, rest)
        return made

    def _object(self, place: int, tag: str, rest: list[Any]) -> Any:
        match tag:
            case "a":
                return self._arrays[rest[0]]
            case "t":
                return tuple(map(self.value, rest[0]))
            case "l":
                return list(map(self.value, rest[0]))
            case "d" | "c" | "m":
                names, values = list(map(self.value, rest[0])), list(map(self.value, rest[1]))
                held = dict(zip(names, values, strict=True))
                return held if tag == "d" else Counter(held) if tag == "c" else MappingProxyType(held)
            case "f":
                return frozenset(rest[0])
            case "s":
                return set(rest[0])
            case "k":
                return self._instance(place, *rest)
        raise ValueError("nothing that a state holds")

    def _instance(self, place: int, number: int, told: list[Any], *keepsake: Any) -> Any:
        kind, names = self._kinds.kinds[number], self._kinds.carried[number]
        frozen = issubclass(kind.cls, tuple) or (is_dataclass(kind.cls) and kind.cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]  # dataclasses have it
        if frozen:
            made = kind.cls(**dict(zip(names, map(self.value, told), strict=True)))
        else:
            made = self._objects[place] = object.__new__(kind.cls)  # known before its parts, which may name it
            for name, value in zip(names, told, strict=True):
                setattr(made, name, self.value(value))
            for name in kind.given:
                setattr(made, name, self._given[name.lstrip("_")])
        if keepsake:
            self._keepsakes[place] = self.value(keepsake[0])
        return made
