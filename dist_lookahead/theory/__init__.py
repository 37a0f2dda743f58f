"""What a stack of levels will do, computed from its description: no tensors of a model, no processes.

cells               the stacks that levels over parts of the parameters are
mixing              P_k, its spectrum, the weights of y = X a, the effective learning rate
bounds              the convergence bound's three terms and its conditions
alpha               the slow step size that is best for the bound, or along one round
quadratic_oracle    mean and covariance of a noisy quadratic, fixed points
growth, stability   from which learning rate x curvature on a stack grows, why, and what helps
closed_forms        the same in formulas, where there are some
consensus           how far agents that gossip are from their mean
games               the same for games of two players
"""

from dist_lookahead.theory import closed_forms
from dist_lookahead.theory.alpha import beats_sgd, floor, line_alpha, optimal_alpha, proposition_1_alpha, secant_alpha
from dist_lookahead.theory.bounds import Bound, Condition, admissible_lr, bound
from dist_lookahead.theory.calendar import Firing, firings
from dist_lookahead.theory.cells import cell_stacks
from dist_lookahead.theory.consensus import consensus_distance, spectral_gap
from dist_lookahead.theory.games import bilinear_contraction
from dist_lookahead.theory.growth import stability_limit
from dist_lookahead.theory.mixing import (
    columns,
    effective_lr,
    fixed_vector,
    level_matrix,
    mixing_matrices,
    mixing_matrix,
    spectrum,
)
from dist_lookahead.theory.quadratic_oracle import noisy_quadratic, stationary
from dist_lookahead.theory.stability import Verdict, verdict

__all__ = [
    "Bound",
    "Condition",
    "Firing",
    "Verdict",
    "admissible_lr",
    "beats_sgd",
    "bilinear_contraction",
    "bound",
    "cell_stacks",
    "closed_forms",
    "columns",
    "consensus_distance",
    "effective_lr",
    "firings",
    "fixed_vector",
    "floor",
    "level_matrix",
    "line_alpha",
    "mixing_matrices",
    "mixing_matrix",
    "noisy_quadratic",
    "optimal_alpha",
    "proposition_1_alpha",
    "secant_alpha",
    "spectral_gap",
    "spectrum",
    "stability_limit",
    "stationary",
    "verdict",
]
