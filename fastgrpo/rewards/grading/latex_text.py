"""LaTeX -> plain text as for a calculator: ``\\frac{1}{2}\\pi`` becomes `` 1/2pi``."""

import re
from html.entities import html5

TOKEN = re.compile(r"\\([a-zA-Z]+)[ \t\n]*|\\(.)|([{}])|([^\\{}]+)|\\$", re.DOTALL)
OPTION = re.compile(r"\s*\[([^\]]{0,40})\]")
LINE_BREAK = re.compile(r"\*?(?:\[[^\]]{0,20}\])?")
# Of the parts of a fraction, which LaTeX has none of: those of the answer itself are (), and an item has none within.
OPEN, CLOSE = "⟮", "⟯"
END_OF_SENTENCE = re.compile(rf"([0-9])({CLOSE}+)\s*\.(?![0-9])")
MAX_DEPTH = 30

FRACTIONS = {"frac", "dfrac", "tfrac", "cfrac", "nicefrac", "sfrac", "textfrac"}
BINOMIALS = {"binom", "dbinom", "tbinom"}
# Marks that make another value of what is under them: 0.\overline{3} is not 0.3.
ACCENTS = {"hat", "check", "breve", "acute", "grave", "tilde", "bar", "vec", "dot", "ddot", "dddot", "mathring"}
ACCENTS |= {"overline", "widehat", "widetilde", "overrightarrow", "overleftarrow", "overleftrightarrow"}
# What is not seen of a command's arguments: * a star, [ an option, { an argument.
HIDDEN = {"hspace": "*{", "vspace": "*{", "phantom": "{", "hphantom": "{", "vphantom": "{", "label": "{", "tag": "*{"}
HIDDEN |= {"color": "[{", "mathcolor": "[{", "pagecolor": "[{", "textcolor": "[{", "colorbox": "[{"}
HIDDEN |= {"fcolorbox": "[{[{", "definecolor": "[{{{"}
# Their text beside a value is a unit, as the source has it.
UNIT_BOXES = {"mbox", "textsf", "texttt", "textup", "textmd"}
BRACKETED = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "psmallmatrix", "bsmallmatrix", "array"}
WITH_COLUMNS = {"array", "tabular", "alignat", "alignat*", "alignedat"}

WORDS = {"pi": "pi", "cdot": "*", "times": "*", "ast": "*", "infty": "inf", "cup": "U", "circ": "°", "quad": " "}
WORDS |= {"qquad": "  ", "neq": "≠", "mid": "|", "to": "→", "exists": "∃", "partial": "∂", "prime": "'", "sup": "sup"}
WORDS |= {"lvert": "|", "rvert": "|", "lVert": "‖", "rVert": "‖", "Vert": "‖", "iint": "∬", "dag": "†", "cdots": "..."}
WORDS |= {"ldots": "...", "dots": "...", "dotsc": "...", "dotsb": "...", "xrightarrow": "→", "xleftarrow": "←"}
WORDS |= dict.fromkeys(("lbrace", "rbrace"), "")
# Commands that change the value, and have another meaning in HTML or none.
NAMES = "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth arccosh arcsinh arctanh ln log lg exp "
NAMES += "max min inf lim limsup liminf gcd lcm det arg dim ker hom Pr mod bmod pmod Re Im choose over atop root surd "
NAMES += "backslash lnot boxdot ddots vdots iddots dotsm dotsi dotso ae AE oe aa ss dh th"
WORDS |= {name: name for name in NAMES.split()}
FONTS = {"text", "textbf", "textit", "textrm", "textsc", "textsl", "textnormal", "textstyle", "textdegree"}
FONTS |= {"textsuperscript", "textsubscript"}
# A letter or a set (\\i, \\RR), and a symbol of text mode (\\textonehalf): their names stay, too.
NAMED = re.compile(r"[a-zA-Z]|(?!SI)[A-Z]{2}|text(?!color)[a-z]+")
# What only changes how an answer looks; any other command that is not known keeps its name: \\sech(2) is not 2.
# "notesize" is \\footnotesize once units are taken away.
DRESS = "Big Bigg Biggl Biggm Biggr Bigl Bigm Bigr Box Huge LARGE Large SI allowbreak ang bcancel bf bfseries big "
DRESS += "bigg biggl biggm biggr bigl bigm bigr bigskip blue bm bold boldmath boldsymbol boxed cal cancel celsius "
DRESS += "centering checkmark circled clap ddagger deg degree displaystyle em emph enskip enspace ensuremath fbox "
DRESS += "footnotesize framebox green hbox hfill hline huge implies indent it itshape km large left limits "
DRESS += "linebreak llap makebox mathbb mathbf mathbin mathcal mathclap mathclose mathds mathfrak mathinner mathit "
DRESS += "mathllap mathnormal mathop mathopen mathord mathpunct mathrel mathrlap mathrm mathscr mathsf mathstrut "
DRESS += "mathtt mdseries medskip medspace middle negmedspace negthickspace negthinspace newline nobreak "
DRESS += "nobreakspace noindent nolimits nonumber normalfont normalsize notag notesize num operatorname overbrace "
DRESS += "par pmb protect qed qty red relax right rlap rm rmfamily sc scriptscriptstyle scriptsize scriptstyle "
DRESS += "scshape selectfont sf sffamily si sl slshape small smallskip smash sout space strut thickspace thinspace "
DRESS += "tiny tt ttfamily uline unboldmath underbrace underline unit upshape vbox xcancel"
LOOKS = FONTS | set(DRESS.split())
SYMBOLS = {",": " ", ";": " ", ":": " ", " ": " ", "\t": " ", "\n": " "}
SYMBOLS |= {symbol: symbol for symbol in "&$%#_|'`\"^~=."}


class TooDeep(ValueError):
    """The braces nest deeper than in any answer."""


def plain_text(latex: str) -> str:
    r"""The text with fractions, roots and symbols written out and without fonts, colours, sizes and braces.

    Commands that only dress (`LOOKS`) vanish, and what they are put on stays; unknown ones keep their names. The
    parts of a fraction stay in brackets of their own, ``⟮1+x⟯/2``, unless each is one number or letter; pylatexenc,
    whose text this is otherwise, drops them. A period behind a fraction is its last number's, as there. A root that is
    not square becomes ``root[3](...)``, which is never evaluated. Raises TooDeep for more than 30 levels of braces.
    """
    text = _Reader(latex, units=False).group()
    text = text if text.strip() else _Reader(latex, units=True).group()
    return END_OF_SENTENCE.sub(r"\1.\2", text) if CLOSE in text else text


class _Reader:
    def __init__(self, latex: str, units: bool) -> None:
        self._latex = latex
        self._units = units  # whether the text of unit boxes is kept
        self._at = 0
        self._depth = 0
        self._matrices = 0

    def group(self) -> str:
        """The text up to the brace that closes the group, or up to the end."""
        self._go_deeper()
        pieces = []
        while (token := self._next()) is not None:
            if token[3] != "}":
                pieces.append(self._piece(token))
            elif self._depth > 1:  # else it closes nothing
                break
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
            return text.replace("&=", "=").replace("&", ",").replace("~", " ")
        if symbol == "\\":
            self._skip(LINE_BREAK)
            return ";" if self._matrices else "\n"
        return SYMBOLS.get(symbol, "") if symbol else self._command(word or "")

    def _command(self, word: str) -> str:
        if word in WORDS:
            return WORDS[word]
        if word in FRACTIONS:
            return f" {_factor(self._argument())}/{_factor(self._argument())}"
        if word == "sqrt":
            degree = self._skip(OPTION).strip(" []")
            return f"{'sqrt' if degree in ('', '2') else f'root[{degree}]'}({self._argument()})"
        if word in BINOMIALS:
            return f"binom{OPEN}{self._argument()};{self._argument()}{CLOSE}"
        if word in ACCENTS:
            return f"{word}({self._argument()})"
        if word in ("begin", "end"):
            return self._environment(word)
        if word in UNIT_BOXES:
            return self._unit()
        if word in HIDDEN:
            self._hide(HIDDEN[word])
        if word in HIDDEN or word in LOOKS:
            return ""
        return word if NAMED.fullmatch(word) else html5.get(f"{word};", word)

    def _environment(self, word: str) -> str:
        name = self._argument()
        if word == "begin" and name in WITH_COLUMNS:
            self._hide("[{")
        if name in BRACKETED:
            self._matrices += 1 if word == "begin" else -1
            return "[" if word == "begin" else "]"
        return "|" if name in ("vmatrix", "Vmatrix") else ""

    def _unit(self) -> str:
        text = self._argument()
        is_word = any(c.isalpha() for c in text) and not any(c.isdigit() for c in text)
        return text if self._units or not is_word else " "

    def _hide(self, arguments: str) -> None:
        for kind in arguments:
            if kind == "{":
                self._argument()
            elif kind == "[":
                self._skip(OPTION)
            elif self._latex.startswith("*", self._at):
                self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._latex, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

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
    return text if re.fullmatch(r"-?[0-9]*\.?[0-9]+|\w|pi|sqrt\([^()]*\)", text) else f"{OPEN}{text}{CLOSE}"
