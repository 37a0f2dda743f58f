"""Communication-efficient training in PyTorch: local steps, and slow updates of all agents together."""

from dist_lookahead.adaptive import QSR, AdaComm, Timed
from dist_lookahead.averaging.codec import Cast, Quantised, TopK
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import Gossip
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.comm.topology import (
    BipartiteExponential,
    Complete,
    Graph,
    OnePeerExponential,
    Ring,
    StaticExponential,
)
from dist_lookahead.failure import SyncError
from dist_lookahead.fragments import Named, Part, Whole
from dist_lookahead.guard import Guard, PoisonedError
from dist_lookahead.level import Every, Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.move import Copy, Pull
from dist_lookahead.optimal import Optimal
from dist_lookahead.optimizer import DistributedLookahead
from dist_lookahead.recipes import (
    bmuf,
    diloco,
    distributed_lookahead,
    dpsgd,
    hierarchical_local_sgd,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    osgp,
    overlapped_local_sgd,
    polyak,
    post_local_sgd,
    sgp,
    slowmo,
    slowmo_over,
    snoo,
    streaming_diloco,
)
from dist_lookahead.schedule import Cosine, InverseSqrt, Linear, Piecewise, Warmup
from dist_lookahead.stack import LevelStack

__version__ = "0.1.0"

__all__ = [
    "QSR",
    "AdaComm",
    "Alone",
    "BipartiteExponential",
    "Cast",
    "Complete",
    "Copy",
    "Cosine",
    "DistributedLookahead",
    "Every",
    "Exact",
    "Gossip",
    "Graph",
    "Guard",
    "InverseSqrt",
    "Level",
    "LevelStack",
    "Linear",
    "Mesh",
    "Named",
    "OnePeerExponential",
    "Optimal",
    "Part",
    "Piecewise",
    "PoisonedError",
    "Pull",
    "PushSum",
    "Quantised",
    "Ring",
    "StaticExponential",
    "SyncError",
    "Timed",
    "TopK",
    "Warmup",
    "Whole",
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
    "simulate",
    "slowmo",
    "slowmo_over",
    "snoo",
    "streaming_diloco",
]
