"""LaTeX -> plain text as for a calculator: ``\\frac{1}{2}\\pi`` becomes `` 1/2pi``."""

import re
from html.entities import name2codepoint

TOKEN = re.compile(r"\\([a-zA-Z]+)[ \t\n]*|\\(.)|([{}])|([^\\{}]+)|\\$", re.DOTALL)
MAX_DEPTH = 30

FRACTIONS = {"frac", "dfrac", "tfrac", "cfrac"}
DROPPED = {"left", "right", "big", "Big", "bigg", "Bigg", "displaystyle", "text", "textbf", "textrm", "mathrm"}
DROPPED |= {"mathbf", "mbox", "mathbb", "mathcal", "mathit", "operatorname", "quad", "qquad", "limits", "textit"}
WORDS = {
    "pi": "pi",
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "infty": "inf",
    "cup": "U",
    "div": "÷",
    "pm": "±",
    "mp": "∓",
}
WORDS |= {"le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "circ": "°"}
WORDS |= {"ldots": "...", "cdots": "...", "dots": "...", "lbrace": "", "rbrace": "", "begin": "[", "end": "]"}
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
)
GREEK += " Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
WORDS |= {name: chr(name2codepoint[name]) for name in GREEK.split()}
SYMBOLS = {",": " ", ";": " ", ":": " ", " ": " ", "!": "", "\\": ";", "&": "&", "{": "", "}": ""}


class TooDeep(ValueError):
    """The braces nest deeper than in any answer."""


def plain_text(latex: str) -> str:
    r"""The text with ``\frac``, ``\sqrt`` and symbols written out and without fonts and braces.

    An unknown command becomes its name. The parts of a fraction stay in brackets unless each is one number or letter:
    so ``\frac{1+x}{2}`` does not become ``1+x/2``, as with pylatexenc. A root that is not square becomes
    ``root[3](...)``, which is never evaluated. Raises TooDeep for more than 30 levels of braces.
    """
    return _Reader(latex).group()


class _Reader:
    def __init__(self, latex: str) -> None:
        self._latex = latex
        self._at = 0
        self._depth = 0

    def group(self) -> str:
        """The text up to the brace that closes the group, or up to the end."""
        self._go_deeper()
        pieces = []
        while (token := self._next()) is not None:
            if token[3] == "}":
                break
            pieces.append(self._piece(token))
        self._depth -= 1
        return "".join(pieces)

    def _go_deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooDeep(f"more than {MAX_DEPTH} levels")

    def _next(self) -> re.Match[str] | None:
        token = TOKEN.match(self._latex, self._at)
        if token is not None:
            self._at = token.end()
        return token

    def _piece(self, token: re.Match[str]) -> str:
        word, symbol, brace, text = token.groups()
        if brace:
            return self.group()
        if text:
            return text.replace("&", ",")
        if symbol:
            return SYMBOLS.get(symbol, symbol)
        return self._command(word or "")

    def _command(self, word: str) -> str:
        if word in FRACTIONS:
            return f" {_factor(self._argument())}/{_factor(self._argument())}"
        if word == "sqrt":
            degree = self._degree()
            return f"{'sqrt' if degree in ('', '2') else f'root[{degree}]'}({self._argument()})"
        if word in ("begin", "end"):
            self._argument()
        return "" if word in DROPPED else WORDS.get(word, word)

    def _degree(self) -> str:
        optional = re.compile(r"\s*\[([^\]]{0,20})\]").match(self._latex, self._at)
        if optional is None:
            return ""
        self._at = optional.end()
        return optional[1].strip()

    def _argument(self) -> str:
        """The argument of a command: a group, a command, or one character."""
        while self._at < len(self._latex) and self._latex[self._at].isspace():
            self._at += 1
        if self._at == len(self._latex) or self._latex[self._at] == "}":
            return ""
        if self._latex[self._at] in "{\\":
            token = self._next()
            self._go_deeper()  # \sqrt\sqrt\sqrt... nests without a brace
            piece = self._piece(token) if token else ""
            self._depth -= 1
            return piece
        self._at += 1
        return self._latex[self._at - 1]


def _factor(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"-?[0-9]*\.?[0-9]+|\w|pi|sqrt\([^()]*\)", text) else f"({text})"
