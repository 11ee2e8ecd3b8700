"""What the commands share: a reader that leaves, the name that was meant, and paths as a person writes them."""

from fastgrpo.command_line.near import did_you_mean
from fastgrpo.command_line.paths import expanded
from fastgrpo.command_line.pipe import quiet_when_unread

__all__ = ["did_you_mean", "expanded", "quiet_when_unread"]
