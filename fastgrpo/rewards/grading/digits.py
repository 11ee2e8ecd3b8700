"""Digits of every script as ASCII's."""


def ascii_digits(text: str) -> str:
    """The text with 0-9 in place of other scripts' decimal digits, as Python's ``int`` and ``float`` read them."""
    if text.isascii():
        return text
    return "".join(str(int(c)) if c.isdecimal() else c for c in text)
