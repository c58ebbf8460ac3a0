"""What people save of rules: Rule, RuleDraft, Watchlist, the ruleset that the engine takes, and the files that rules
come in. `documents` hands these names on.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, TypeAdapter, model_validator

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.rules import checked
from tapewatch.engine.rules import text as texts
from tapewatch.engine.rules.tree import Condition as ConditionTree
from tapewatch.engine.rules.tree import Fire, Ruleset, RuleSpec, Severity
from tapewatch.engine.rules.tree import watchlists as named_watchlists
from tapewatch.errors import Invalid
from tapewatch.rule_forms import Condition, ConditionForm, check_depth, forms_of
from tapewatch.strict import Document, Identifier, Symbol, Text, load_json, parse_document, parse_form, refuse_field

MAX_CONDITIONS = 64
DAY_S = 86_400
RULE_TEXT = {"format": "rule-text"}
"""Of a schema: the text of a condition."""


def _text_without_default(schema: dict[str, Any]) -> None:
    """For a text that may be left out but, given, is never empty."""
    schema |= RULE_TEXT
    schema.pop("default", None)


def _once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


class _Asks(NamedTuple):
    """What a rule asks, as trees."""

    when: ConditionTree
    gate: ConditionTree | None
    rearm: ConditionTree | None
    fire: Fire


T = TypeVar("T")
RuleText = Annotated[str, Field(max_length=texts.MAX_TEXT, json_schema_extra=RULE_TEXT)]


class RuleDraft(Document):
    """A rule as its author writes it. What it asks stands in `conditions`, which must all hold, or in `when` as text:
    one of the two is enough, and both are filled. To change the one, leave the other out.
    """

    name: Annotated[Text, Field(min_length=1, max_length=120)]
    description: Annotated[Text, Field(max_length=2_000)] = ""
    conditions: Annotated[
        list[ConditionForm],
        BeforeValidator(check_depth),
        Field(min_length=1, max_length=MAX_CONDITIONS),
    ] = Field(default_factory=list)
    when: Annotated[str, Field(min_length=1, max_length=texts.MAX_TEXT, json_schema_extra=_text_without_default)] = ""
    gate: RuleText = ""
    """A second condition; a fire that it suppresses is spent."""
    rearm: RuleText = ""
    """With `fire` edge: what must have been true before the rule can fire again."""
    fire: Annotated[
        str,
        Field(max_length=64, examples=["edge", "level", "once per bar 5m", "once per session", "once per day"]),
    ] = "edge"
    cooldown: Annotated[float, Field(ge=0, le=7 * DAY_S, description="seconds of event time per symbol")] = 0.0
    severity: Severity = "info"
    tags: Annotated[list[Identifier], Field(max_length=texts.MAX_TAGS), AfterValidator(_once)] = Field(
        default_factory=list
    )
    enabled: bool = True
    shared: bool = False
    """Everybody in the installation sees it and gets its alerts."""

    _asks: _Asks = PrivateAttr()

    @model_validator(mode="after")
    def _checked(self) -> "RuleDraft":
        """Check what the rule asks, and fill in its canonical forms."""
        when = self._when()
        gate, rearm = self._condition("gate"), self._condition("rearm")
        fire = self._parsed("fire", texts.parse_fire)
        if rearm is not None and fire.mode != "edge":
            refuse_field(RuleDraft, "rearm", "can be given only with fire edge", self.rearm)
        self._asks = _Asks(when, gate, rearm, fire)
        self.__dict__.update(
            gate=texts.format_condition(gate) if gate is not None else "",
            rearm=texts.format_condition(rearm) if rearm is not None else "",
            fire=texts.format_fire(fire),
        )
        return self

    def _when(self) -> ConditionTree:
        """What `conditions` and `when` say; both are filled."""
        if not self.conditions and not self.when:
            refuse_field(RuleDraft, "conditions", "is missing; give conditions, or when as text")
        if not self.conditions:
            when = self._parsed("when", texts.parse_condition)
            forms = forms_of(when, most=MAX_CONDITIONS)
            text = texts.format_condition(when)
        else:
            try:
                when = checked.all_of(form.tree() for form in self.conditions)
                checked.check_size(when)
            except ValueError as error:
                refuse_field(RuleDraft, "conditions", str(error))
            text = texts.format_condition(when)
            if len(text) > texts.MAX_TEXT:
                why = f"are longer than {texts.MAX_TEXT:,} characters as text; a watchlist holds many symbols"
                refuse_field(RuleDraft, "conditions", why)
            if self.when and self.when != text and self._parsed("when", texts.parse_condition) != when:
                why = "says something else than conditions; to change one of the two, leave the other out"
                refuse_field(RuleDraft, "when", why, self.when)
            plain = all(type(form) is Condition and isinstance(form.value, float) for form in self.conditions)
            forms = self.conditions if plain else forms_of(when, most=MAX_CONDITIONS)
        self.__dict__.update(conditions=forms, when=text)
        return when

    def _condition(self, name: str) -> ConditionTree | None:
        return self._parsed(name, texts.parse_condition) if getattr(self, name) else None

    def _parsed(self, name: str, parse: Callable[[str], T]) -> T:
        text = getattr(self, name)
        try:
            return parse(text)
        except Invalid as error:
            refuse_field(RuleDraft, name, str(error), text)


class Rule(RuleDraft):
    """A saved rule. `version` rises with each change; an alert names the version that fired. `owner` is the id of the
    user who created it, and stays.
    """

    id: Identifier
    owner: Identifier = "local"
    version: Annotated[int, Field(ge=1, le=2**31)] = 1
    created_at: str = ""
    updated_at: str = ""

    def spec(self) -> RuleSpec:
        asks = self._asks
        return RuleSpec(
            id=self.id,
            version=self.version,
            name=self.name,
            when=asks.when,
            gate=asks.gate,
            rearm=asks.rearm,
            fire=asks.fire,
            cooldown_ns=round(self.cooldown * SECOND_NS),
            severity=self.severity,
            tags=tuple(self.tags),
            owner=self.owner,
            shared=self.shared,
        )

    def written(self) -> str:
        """The rule as a rule file holds it."""
        return texts.format_rule(texts.WrittenRule(self.spec(), self.description, enabled=self.enabled))


class WatchlistDraft(Document):
    """A watchlist as its author writes it. A symbol that is given twice stands once."""

    name: Annotated[Text, Field(min_length=1, max_length=120)]
    symbols: Annotated[list[Symbol], Field(max_length=texts.MAX_SYMBOLS), AfterValidator(_once)]
    shared: bool = False
    """Everybody in the installation sees it, and may name it in rules."""


class Watchlist(WatchlistDraft):
    """A saved watchlist, which rules name by its id. `owner` as of a `Rule`."""

    id: Identifier
    owner: Identifier = "local"
    version: Annotated[int, Field(ge=1, le=2**31)] = 1
    created_at: str = ""
    updated_at: str = ""

    def may_be_named_by(self, owner: str) -> bool:
        """By rules and toplists of that owner: it counts who owns them, whoever changes them."""
        return self.shared or self.owner == owner

    def written(self) -> str:
        """The list as a rule file holds it."""
        return texts.format_watchlist(
            texts.WrittenWatchlist(self.id, self.name, tuple(self.symbols), shared=self.shared)
        )


def ruleset(
    number: int, rules: Iterable[Rule], watchlists: Iterable[Watchlist] = (), *, shown: Iterable[str] = ()
) -> Ruleset:
    """The enabled rules as the engine takes them, with those of the lists that they name, and the rows that boards show
    for toplists. A rule that names a list which its owner does not see any more is not asked: its alerts would tell
    what is on the list.
    """
    known = {watchlist.id: watchlist for watchlist in watchlists}
    lists: dict[str, frozenset[str]] = {}
    specs: list[RuleSpec] = []
    for spec in (rule.spec() for rule in rules if rule.enabled):
        named = [known[name] for name in named_watchlists(*spec.conditions) if name in known]
        if all(watchlist.may_be_named_by(spec.owner) for watchlist in named):
            specs.append(spec)
            lists |= {watchlist.id: frozenset(watchlist.symbols) for watchlist in named if watchlist.id not in lists}
    return Ruleset(number=number, rules=tuple(specs), watchlists=lists, shown=tuple(sorted(set(shown))))


def load_rules(text: str | bytes, *, where: str) -> list[Rule]:
    """The rules of a JSON file: a list, or ``{"rules": [...]}``; see `rules_of`."""
    raw = load_json(text, where=where)
    if isinstance(raw, dict) and set(raw) == {"rules"}:
        raw = raw["rules"]
    with _of_file(where):
        return rules_of(raw)


def load_rule_file(text: str | bytes, *, where: str) -> tuple[list[Rule], list[Watchlist]]:
    """The rules and watchlists of a file: JSON, or the text of rules. The suffix of `where` says which it is, else the
    first character. JSON is a list of rules, or ``{"rules": [...], "watchlists": [...]}``.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Invalid(where, f"not UTF-8 at byte {error.start}") from None
    if where.endswith(".json") or (not where.endswith(".rules") and text.lstrip()[:1] in {"[", "{"}):
        raw = load_json(text, where=where)
        with _of_file(where):
            if isinstance(raw, dict) and {"watchlists"} <= set(raw) <= {"rules", "watchlists"}:
                return rules_of(raw.get("rules", [])), parse_form(_WATCHLISTS, raw["watchlists"], where="watchlists")
            return rules_of(raw["rules"] if isinstance(raw, dict) and set(raw) == {"rules"} else raw), []
    with _of_file(where):
        file = texts.parse_rules(text)
        rules = [_rule_of(written) for written in file.rules]
        return rules, [
            parse_document(
                Watchlist,
                {"id": written.id, "name": written.name, "symbols": list(written.symbols), "shared": written.shared},
                where=f"line {written.line}: watchlist {written.id}",
            )
            for written in file.watchlists
        ]


def _distinct(watchlists: list[Watchlist]) -> list[Watchlist]:
    if len({watchlist.id for watchlist in watchlists}) < len(watchlists):
        raise ValueError("two watchlists have the same id")
    return watchlists


_WATCHLISTS: TypeAdapter[list[Watchlist]] = TypeAdapter(Annotated[list[Watchlist], AfterValidator(_distinct)])


@contextmanager
def _of_file(where: str) -> Iterator[None]:
    """What is wrong inside stands in this file."""
    try:
        yield
    except Invalid as error:
        raise Invalid(f"{where}: {error.where}" if error.where else where, error.why) from None


def _rule_of(written: texts.WrittenRule) -> Rule:
    spec = written.spec
    fields = {
        "id": spec.id,
        "name": spec.name,
        "description": written.description,
        "when": texts.format_condition(spec.when),
        "gate": texts.format_condition(spec.gate) if spec.gate is not None else "",
        "rearm": texts.format_condition(spec.rearm) if spec.rearm is not None else "",
        "fire": texts.format_fire(spec.fire),
        "cooldown": spec.cooldown_ns / SECOND_NS,
        "severity": spec.severity,
        "tags": list(spec.tags),
        "enabled": written.enabled,
        "shared": spec.shared,
    }
    return parse_document(Rule, fields, where=f"line {written.line}: rule {spec.id}")


def rules_of(raw: Any) -> list[Rule]:
    """A list of rules. One without an id is named by its place. `Invalid.where` starts at ``rules``."""
    if not isinstance(raw, list):
        raise Invalid("", 'must be a list of rules, or {"rules": [...]}')
    rules: dict[str, Rule] = {}
    for index, item in enumerate(raw):
        place, document = f"rules[{index}]", item
        if isinstance(item, dict):
            named = item.get("id")
            name = named if isinstance(named, str) and named.isprintable() and named else f"rule {index + 1}"
            document = {"id": f"rule-{index + 1}", "name": name, **item}
        rule = parse_document(Rule, document, where=place)
        if rule.id in rules:
            raise Invalid(f"{place}.id", f"{rule.id!r} is already the id of another rule in this file")
        rules[rule.id] = rule
    return list(rules.values())
