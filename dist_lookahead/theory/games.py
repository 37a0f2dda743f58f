"""Games of two players in formulas: what a round of Lookahead leaves of the distance to the solution."""


def bilinear_contraction(lr: float, tau: int, alpha: float) -> float:
    """Factor of a round of Lookahead over both players of min_x max_y x y on the distance to the solution, 0.

    Simultaneous gradient steps x <- x - gamma y, y <- y + gamma x turn w = x + i y and lengthen it:
    w <- (1 + i gamma) w, a spiral outwards. A pull to a point between the two ends of the spiral's arc cuts inwards:

        |1 - alpha + alpha (1 + i gamma)^tau|

    Below 1 the players converge; in rounds of one step, which are steps of the rate alpha gamma, they never do. It is
    least for rounds of about half a turn, tau = pi / arctan(gamma), whose ends lie on opposite sides of the solution.

    Args:
        lr: gamma > 0, of both players.
        tau: simultaneous steps from sync to sync, >= 1.
        alpha: slow step size, > 0; 1 is gradient descent-ascent itself.

    Example:
        >>> round(bilinear_contraction(0.1, tau=31, alpha=0.5), 3), bilinear_contraction(0.1, tau=31, alpha=1.0) > 1
        (0.088, True)

    Reference: Chavdarova et al., arXiv 2006.14567, for the game and the method.
    """
    return abs(1 - alpha + alpha * (1 + 1j * lr) ** tau)
