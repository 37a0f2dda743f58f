"""BLEU by sacrebleu, as sums that add up over batches and agents."""

from collections.abc import Mapping, Sequence
from typing import Any

ORDERS = (1, 2, 3, 4)
COUNTS = ("hypothesis_length", "reference_length", *(f"{what}_{n}" for what in ("correct", "total") for n in ORDERS))
"""The sufficient statistics of corpus BLEU."""


def bleu_counts(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Count n-grams and lengths of translations, tokenised as in WMT ("13a").

    Args:
        hypotheses: translations, in plain text.
        references: as many.

    Raises:
        ValueError: sacrebleu is not installed.

    Example:
        >>> counts = bleu_counts(["a b c d e"], ["a b c d f"])
        >>> counts["correct_1"], counts["total_1"], round(bleu(counts), 2)
        (4.0, 5.0, 66.87)
    """
    metrics = _metrics()
    found = metrics.BLEU(force=True).corpus_score(list(hypotheses), [list(references)])
    numbers = (found.sys_len, found.ref_len, *found.counts, *found.totals)
    return dict(zip(COUNTS, map(float, numbers), strict=True))


def bleu(counts: Mapping[str, float]) -> float:
    """Return corpus BLEU in percent, in [0, 100]: 100 min(1, e^(1 - r/h)) (prod_n correct_n / total_n)^(1/4).

    Args:
        counts: sums of what `bleu_counts` returned.

    Reference: Papineni et al. 2002; arXiv 1804.08771.
    """
    correct, total = ([int(counts[f"{what}_{n}"]) for n in ORDERS] for what in ("correct", "total"))
    lengths = int(counts["hypothesis_length"]), int(counts["reference_length"])
    return _metrics().BLEU.compute_bleu(correct, total, *lengths, smooth_method="exp").score


def _metrics() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise ValueError("BLEU needs sacrebleu: pip install 'dist-lookahead[text]'") from error
    return metrics
