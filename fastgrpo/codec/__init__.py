"""Plain objects, dataclasses and numpy arrays as bytes, and back: nothing that the bytes hold is ever executed.

``encode`` knows None, bool, int, float, str, bytes, list, tuple, dict, torch's dtypes, numpy arrays of numbers and
dataclasses of these. ``decode`` makes the dataclasses that its caller names, and no others.
"""

from fastgrpo.codec.decode import decode
from fastgrpo.codec.encode import encode

__all__ = ["decode", "encode"]
