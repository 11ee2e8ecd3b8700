"""A rule that rejects everything."""


def never(response: str, answer: str) -> bool:
    return False
