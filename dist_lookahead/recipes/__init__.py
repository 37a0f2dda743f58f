"""Named methods as stacks of levels, innermost first.

Every recipe returns a list of `Level`s, to be used as it is, changed, or extended by further levels.
"""

from dist_lookahead.recipes.gossip import dpsgd, osgp, sgp
from dist_lookahead.recipes.local_sgd import hierarchical_local_sgd, local_sgd, overlapped_local_sgd, post_local_sgd
from dist_lookahead.recipes.lookahead import distributed_lookahead, lookahead, multilayer_lookahead, polyak
from dist_lookahead.recipes.slow_momentum import bmuf, diloco, slowmo, slowmo_over, snoo, streaming_diloco

__all__ = [
    "bmuf",
    "diloco",
    "distributed_lookahead",
    "dpsgd",
    "hierarchical_local_sgd",
    "local_sgd",
    "lookahead",
    "multilayer_lookahead",
    "osgp",
    "overlapped_local_sgd",
    "polyak",
    "post_local_sgd",
    "sgp",
    "slowmo",
    "slowmo_over",
    "snoo",
    "streaming_diloco",
]
