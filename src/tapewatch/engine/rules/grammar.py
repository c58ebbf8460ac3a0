"""The grammar of rule text, for an LALR(1) parser whose lexer knows which words can come next.

Values and conditions share one grammar, because ``(`` may open either; `text` tells them apart. From loosest to
tightest: then, or, and, not, the postfixes for/within/times in a row, comparisons, + -, * /, the sign.

The step after a ``then`` is a condition without a bare ``within``, so that the ``within`` behind it is the sequence's.
"""

_NUMBER = r"(?:[0-9]+(?:_[0-9]+)*(?:\.(?:[0-9]+(?:_[0-9]+)*)?)?|\.[0-9]+(?:_[0-9]+)*)(?:[eE][+-]?[0-9]+|[kKMB])?"

_RESERVED = (
    "and|or|not|then|within|for|in|is|between|rule|watchlist|description|when|gate|rearm|fire|cooldown|severity|tags|"
    "disabled|shared"
)

GRAMMAR = rf"""
condition: sequence
fire: _fire
file: item*

?item: watchlist | rule

watchlist: watchlist_head "=" names | watchlist_head "=" "(" ")" -> empty_watchlist
watchlist_head: WATCHLIST ID | WATCHLIST ID STRING | WATCHLIST ID SHARED_WORD
              | WATCHLIST ID STRING SHARED_WORD
rule: rule_head | rule clause
rule_head: RULE ID | RULE ID STRING
clause: DESCRIPTION STRING -> description
      | WHEN sequence -> when
      | GATE sequence -> gate
      | REARM _WHEN_WORD sequence -> rearm
      | FIRE _fire -> fires
      | COOLDOWN DURATION -> cooldown
      | SEVERITY ID -> severity
      | TAGS tags -> tagged
      | DISABLED -> disabled
      | SHARED -> shared
tags: ID | tags "," ID
_fire: EDGE | LEVEL | _ONCE _PER SESSION_WORD | _ONCE _PER DAY | _ONCE _PER BAR DURATION

?sequence: either | sequence _THEN step _WITHIN DURATION -> then
?either: both | either _OR both -> or_
?both: one | both _AND one -> and_
?one: lasting | _NOT one -> not_
?lasting: test
        | lasting _FOR DURATION -> held
        | lasting _WITHIN DURATION -> within
        | lasting TIMES_COUNT _TIMES -> in_a_row

?step: step_both | step _OR step_both -> or_
?step_both: step_one | step_both _AND step_one -> and_
?step_one: step_lasting | _NOT step_one -> not_
?step_lasting: test | step_lasting _FOR DURATION -> held | step_lasting TIMES_COUNT _TIMES -> in_a_row

?test: sum
     | sum COMPARE sum -> comparison
     | sum _BETWEEN sum _AND sum -> between
     | sum _NOT _BETWEEN sum _AND sum -> not_between
     | sum CROSSES sum -> crossing
     | ATTRIBUTE _IN "(" names ")" -> listed
     | ATTRIBUTE _NOT _IN "(" names ")" -> not_listed
     | ATTRIBUTE _IS name -> listed
     | ATTRIBUTE _IS _NOT name -> not_listed
     | ATTRIBUTE _IN _WATCHLIST_WORD list_name -> in_watchlist
     | ATTRIBUTE _NOT _IN _WATCHLIST_WORD list_name -> not_in_watchlist

?sum: product | sum PLUS product -> arithmetic | sum MINUS product -> arithmetic
?product: signed | product STAR signed -> arithmetic | product SLASH signed -> arithmetic
?signed: atom | MINUS signed -> negate
?atom: NUMBER -> number
     | MONEY -> marked
     | PERCENT -> marked
     | TIME -> time
     | NAME -> metric
     | NAME "[" COUNT "]" -> candle
     | NAME "(" arguments ")" -> function
     | LPAR sequence ")" -> parenthesised

arguments: sum | arguments "," sum
names: name | names "," name
?name: WORD | STRING
?list_name: ID | STRING

LPAR: "("
PLUS: "+"
MINUS: "-"
STAR: "*"
SLASH: "/"
COMPARE: /(?:>=|<=|==|!=|=|>|<)(?![=<>!])/
CROSSES.2: /crosses(?:_|[ \t\n]+)(?:above|below)\b/i
_BETWEEN.2: /between\b/i
_AND.2: /and\b/i
_OR.2: /or\b/i
_NOT.2: /not\b/i
_THEN.2: /then\b/i
_WITHIN.2: /within\b/i
_FOR.2: /for\b/i
_TIMES.2: /times[ \t\n]+in[ \t\n]+a[ \t\n]+row\b/i
_IN.2: /in\b/i
_IS.2: /is\b/i
ATTRIBUTE.2: /(?:symbol|exchange|type|sector|session)\b/i
_WATCHLIST_WORD.2: /watchlist\b/i

WATCHLIST.2: /watchlist\b/i
RULE.2: /rule\b/i
DESCRIPTION.2: /description\b/i
WHEN.2: /when\b/i
_WHEN_WORD.2: /when\b/i
GATE.2: /gate\b/i
REARM.2: /rearm\b/i
FIRE.2: /fire\b/i
COOLDOWN.2: /cooldown\b/i
SEVERITY.2: /severity\b/i
TAGS.2: /tags\b/i
DISABLED.2: /disabled\b/i
SHARED.2: /shared\b/i
SHARED_WORD.2: /shared\b/i
EDGE.2: /edge\b/i
LEVEL.2: /level\b/i
_ONCE.2: /once\b/i
_PER.2: /per\b/i
SESSION_WORD.2: /session\b/i
DAY.2: /day\b/i
BAR.2: /bar\b/i

TIME.3: /[0-9]{{1,2}}:[0-9]{{2}}(?::[0-9]{{2}})?(?![A-Za-z0-9_.:])/
PERCENT.3: /{_NUMBER}[ ]?%/
MONEY: /\$[ ]?{_NUMBER}(?![A-Za-z0-9_.:%])/
NUMBER: /{_NUMBER}(?![A-Za-z0-9_.:%])/
TIMES_COUNT: /[0-9]+(?=[ \t\n]+times\b)/i
COUNT: /[0-9]+(?![A-Za-z0-9_.:%])/
DURATION: /(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+(?![A-Za-z0-9_.])/
NAME: /(?!(?:{_RESERVED})\b)[A-Za-z_][A-Za-z0-9_]*/i
ID: /[A-Za-z0-9][A-Za-z0-9_.\-]*/
WORD: /[A-Za-z0-9][A-Za-z0-9.\-^+=$_:]*/
STRING: /"[^"\\\n]*(?:\\["\\][^"\\\n]*)*"/
SPACE: /[ \t\n]+/
COMMENT: /#[^\n]*/
%ignore SPACE
%ignore COMMENT
"""
