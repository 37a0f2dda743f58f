"""Eigenvalues of matrices that are hard on LAPACK."""

import torch
from torch import Tensor


def eigenvalues(matrices: Tensor) -> Tensor:
    """Return the eigenvalues of (.., S, S) matrices in float64, (.., S) complex, in no order.

    LAPACK's solver for real matrices gives up on some of rank one, such as P of many agents; the one for complex
    matrices, which takes longer, has not been seen to.

    Example:
        >>> eigenvalues(torch.ones(64, 64, dtype=torch.float64)).abs().max().round().item()
        64.0
    """
    try:
        return torch.linalg.eigvals(matrices)
    except torch.linalg.LinAlgError:
        return torch.linalg.eigvals(matrices.to(torch.complex128))
