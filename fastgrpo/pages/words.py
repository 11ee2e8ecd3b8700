"""Numbers as people read them."""


def counted(count: float, noun: str) -> str:
    """A count with its noun: 1 rank, 2 ranks."""
    return f"{count:,.0f} {noun}{'s' * (count != 1)}"


def amount(count: float) -> str:
    """A number with three digits and a word: 140 billion, 9.2 million, 31 thousand, 512."""
    for size, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"), (1e4, " thousand")):
        if count >= size:
            # The g format alone would write 1e+03 for a number that rounds up to a thousand.
            return f"{float(f'{count:.3g}') / (size if size > 1e4 else 1e3):,g}{word}"
    return f"{count:,.0f}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 41 s, 12 min 30 s, 3 h 5 min, 15 d 2 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    total = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if total >= size:
            rest = total % size // part
            return f"{total // size} {unit}" + (f" {rest} {below}" if rest else "")
    raise AssertionError("a minute or more has a unit")
