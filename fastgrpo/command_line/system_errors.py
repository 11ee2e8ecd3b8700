"""What the system refuses, in words."""

import errno

ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "take a folder that this user may write in"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files, `ulimit -n`"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
}


def in_words(error: OSError) -> str:
    """What the system says, of which file, and what helps where that is known."""
    advice = f": {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return f"{error.filename}: {error.strerror}{advice}" if error.filename else f"{error}{advice}"
