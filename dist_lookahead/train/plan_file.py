"""A run file with other levels: in the words of the file's recipe where that has them, else as a list."""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_lookahead.level import Level
from dist_lookahead.planner.variants import longest
from dist_lookahead.train.config import Config, parse_config
from dist_lookahead.train.config_levels import RECIPES, Levels


def with_levels(config: Config, levels: Sequence[Level]) -> Config:
    """Return the run with other levels, checked as a file is.

    Args:
        config: the run.
        levels: innermost first.

    Raises:
        ConfigError: where the rest of the run does not go with them.
    """
    plain = {**config.resolved(), "levels": _written(config.levels, tuple(levels)).plain()}
    return parse_config(plain, f"run {config.run.name!r}")


def _written(given: Levels, levels: tuple[Level, ...]) -> Levels:
    if given.recipe:
        arguments = {**given.arguments, **_arguments(given.arguments, levels)}
        try:
            stack = tuple(RECIPES[given.recipe](**arguments))
        except ValueError:  # other numbers than the recipe has a name for
            stack = ()
        if stack == levels:
            return Levels(stack=levels, recipe=given.recipe, arguments=arguments)
    return Levels(stack=levels)


def _arguments(known: Mapping[str, Any], levels: Sequence[Level]) -> dict[str, Any]:
    """What a recipe may call the things that a plan changes."""
    last = levels[-1]
    changed = {"tau": longest(levels), "delay": last.when.delay, "codec": getattr(last.mix, "codec", None)}
    return {name: value for name, value in changed.items() if name in known}
