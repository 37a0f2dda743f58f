"""Codes in run files, and how a wrong one is refused."""

from typing import Any

import pytest

from dist_lookahead import Cast, Quantised, TopK, slowmo
from dist_lookahead.averaging.codec import Codec
from dist_lookahead.train.config_faults import Faults
from dist_lookahead.train.config_levels import Levels


@pytest.mark.parametrize(
    ("plain", "codec"),
    [
        ({"quantised": {"bits": 4, "rounding": "stochastic"}}, Quantised(4, rounding="stochastic")),
        ("cast", Cast()),
        ({"top_k": {"fraction": 0.01}}, TopK(0.01)),
        (None, None),
    ],
)
def test_a_run_file_names_the_code(plain: Any, codec: Codec | None) -> None:
    levels = Levels.read({"recipe": "slowmo", "tau": 12, "codec": plain})
    assert list(levels.stack) == slowmo(12, codec=codec)
    assert Levels.read(levels.plain()) == levels


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"quantized": {"bits": 8}}, "levels.codec.quantized is unknown; did you mean 'quantised'"),
        ("quantized", "levels.codec='quantized' is unknown; did you mean 'quantised'? allowed: cast, quantised, top_k"),
        ({"quantised": {"bit": 8}}, "levels.codec.quantised.bit is unknown; did you mean 'bits'"),
        ({"quantised": {"bits": 5}}, "Quantised.bits=5 must be 4 or 8"),
        ({"quantised": {"block": "large"}}, "levels.codec.quantised"),
        ({"cast": {"error_feedback": 1}}, "levels.codec.cast.error_feedback=1 must be true or false"),
        ({"pull": {"alpha": 0.5}}, "is unknown; allowed: cast, quantised, top_k"),
        (8, "levels.codec=8 is unknown; allowed: cast, quantised, top_k"),
    ],
)
def test_a_wrong_code_in_a_run_file_is_named(plain: Any, message: str) -> None:
    with pytest.raises(Faults) as error:
        Levels.read({"recipe": "slowmo", "codec": plain})
    assert message in "\n".join(error.value.faults)
