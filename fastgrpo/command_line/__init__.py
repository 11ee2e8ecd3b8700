"""What the commands share: a reader that leaves, and the name that was meant."""

from fastgrpo.command_line.near import did_you_mean
from fastgrpo.command_line.pipe import quiet_when_unread

__all__ = ["did_you_mean", "quiet_when_unread"]
