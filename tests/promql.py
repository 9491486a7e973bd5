"""Reads the part of PromQL that the dashboard and the alert rules use, and refuses everything else.

expression = operand { operator operand }
operand    = number | "(" expression ")" | aggregation | function "(" arguments ")" | selector [ "[" duration "]" ]
aggregation = ("sum" | "min" | "max" | "avg") [ "by" "(" labels ")" ] "(" expression ")"
"""

import re
from dataclasses import dataclass, field

AGGREGATIONS = {"sum", "min", "max", "avg"}
OVER_A_RANGE = {"rate", "increase"}
FUNCTIONS = OVER_A_RANGE | {"absent", "histogram_quantile"}
OPERATORS = {"+", "-", "*", "/", "==", ">", "<"}
TOKEN = re.compile(
    r'\s*(?:(?P<duration>\[\d+[smhd]\])|(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_]\w*)|(?P<text>"[^"\\]*")'
    r"|(?P<sign>==|=~|!=|!~|[-+*/<>=(){},]))"
)


class NoQuery(ValueError):
    """The text is no query, or not of the kind that is read here."""


@dataclass
class Selected:
    """One selector.

    Attributes:
        metric: its name.
        labels: those that it, or an aggregation around it, names.
        function: what takes its range, None for an instant.
    """

    metric: str
    labels: set[str] = field(default_factory=set)
    function: str | None = None


class Query:
    """A parsed query; `selected` are its selectors. Raises NoQuery where it is none."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        self.selected: list[Selected] = []
        at = 0
        text = text.strip()
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                raise NoQuery(f"cannot read {text[at:]!r}")
            assert found.lastgroup is not None
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        self._expression(set(), None)
        if self._tokens:
            raise NoQuery(f"left over: {self._tokens}")

    def _next(self) -> tuple[str, str]:
        return self._tokens[0] if self._tokens else ("end", "")

    def _take(self, *expected: str) -> str:
        _, value = self._next()
        if not self._tokens or (expected and value not in expected):
            raise NoQuery(f"expected {expected}, got {value!r}")
        del self._tokens[0]
        return value

    def _expression(self, grouped: set[str], function: str | None) -> None:
        self._operand(grouped, function)
        while self._next()[1] in OPERATORS:
            self._take()
            self._operand(grouped, function)

    def _operand(self, grouped: set[str], function: str | None) -> None:
        kind, value = self._next()
        if kind == "number":
            self._take()
        elif value == "(":
            self._take()
            self._expression(grouped, function)
            self._take(")")
        elif value in AGGREGATIONS:
            self._take()
            self._take_group(grouped, function)
        elif value in FUNCTIONS:
            self._take()
            self._take("(")
            self._expression(grouped, value)
            while self._next()[1] == ",":
                self._take()
                self._expression(grouped, value)
            self._take(")")
        elif kind == "name":
            self._selector(grouped, function)
        else:
            raise NoQuery(f"expected an operand, got {value!r}")

    def _take_group(self, grouped: set[str], function: str | None) -> None:
        labels = set(grouped)
        if self._next()[1] == "by":
            self._take()
            self._take("(")
            labels.add(self._take())
            while self._take(",", ")") == ",":
                labels.add(self._take())
        self._take("(")
        self._expression(labels, None if function in OVER_A_RANGE else function)
        self._take(")")

    def _selector(self, grouped: set[str], function: str | None) -> None:
        selected = Selected(self._take(), set(grouped))
        if self._next()[1] == "{":
            self._take()
            while self._next()[1] != "}":
                selected.labels.add(self._take())
                self._take("=", "=~", "!=", "!~")
                if self._next()[0] != "text":
                    raise NoQuery(f"a label wants a quoted value, got {self._next()[1]!r}")
                self._take()
                if self._next()[1] != "}":
                    self._take(",")
            self._take("}")
        if self._next()[0] == "duration":
            self._take()
            if function not in OVER_A_RANGE:
                raise NoQuery(f"a range of {selected.metric} that no function takes")
            selected.function = function
        elif function in OVER_A_RANGE:
            raise NoQuery(f"{function} wants a range of {selected.metric}")
        self.selected.append(selected)
