"""`dist-lookahead theory`: what a run file's levels will do, computed from their description alone."""

from collections.abc import Iterator

from dist_lookahead.theory.first_round import End, ends, frozen
from dist_lookahead.train.config import Config
from dist_lookahead.train.theory_report_bounds import bound_lines
from dist_lookahead.train.theory_report_levels import level_lines
from dist_lookahead.train.theory_report_mixing import average_lines, mixing_lines
from dist_lookahead.train.theory_report_quadratics import quadratic_lines, verdict_lines
from dist_lookahead.train.theory_report_setting import Assumptions, Setting, setting_of
from dist_lookahead.train.theory_report_text import number, paragraph


def theory_report(config: Config, assumed: Assumptions) -> Iterator[str]:
    """Yield the lines of the report, of 100 columns at most.

    Args:
        config: of the run.
        assumed: what the file does not say.

    Raises:
        ConfigError: for a number of agents that does not fit the file.
    """
    setting = setting_of(config, assumed)
    length = "" if setting.steps is None else f"{setting.steps} fast steps of "
    agents = f"{setting.agents} agent{'s' * (setting.agents > 1)}"
    yield f"{config.run.name}: {length}{agents}, {config.inner.name} with learning rate {number(setting.lr)}"
    for remark in setting.remarks:
        yield from paragraph(remark)
    yield from ("", "Levels, innermost first", *level_lines(setting.levels))
    for end in ends(setting.levels):
        yield from _for_constant_levels(setting, end)
    yield from ("", "Stability", *verdict_lines(setting))


def _for_constant_levels(setting: Setting, end: End) -> Iterator[str]:
    levels = frozen(setting.levels, end=end)
    which = f", at the {end} end of a measured alpha" if len(ends(setting.levels)) > 1 else ""
    yield from ("", f"Syncs as matrices{which}", *mixing_lines(levels, setting.crowd))
    yield from ("", f"The mean that moves like SGD{which}", *average_lines(levels, setting.crowd))
    yield from ("", f"Convergence{which}", *bound_lines(setting, levels))
    yield from ("", f"Noisy quadratics{which}", *quadratic_lines(setting, levels))
