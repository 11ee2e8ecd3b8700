"""The processes of a launch: started, found by each other, and ended when one of them hangs."""

from fastgrpo.ranks.ranks import Ranks, Refused, Role, choose_device, is_of_a_lost_rank, share_of
from fastgrpo.ranks.rendezvous import launched_ranks, meet

__all__ = ["Ranks", "Refused", "Role", "choose_device", "is_of_a_lost_rank", "launched_ranks", "meet", "share_of"]
