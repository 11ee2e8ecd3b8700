"""Rewards that differ in their time alone; sleeping stands for a judge or a sandbox elsewhere, and takes no core."""

import time
import zlib

SLOW_S = 0.05


def at_once(response: str, answer: str) -> bool:
    """True for about half of all responses, so that every group is trained on."""
    return zlib.crc32(response.encode()) % 2 == 0


def after_50_ms(response: str, answer: str) -> bool:
    """The same, later."""
    time.sleep(SLOW_S)
    return at_once(response, answer)
