import numpy as np
import pytest

from saejax.errors import InputError
from saejax.models.schedule import Decay, Schedule


@pytest.mark.parametrize("decay", ["cosine", "wsd"])
def test_the_rate_is_that_of_the_formula(decay: Decay) -> None:
    """W = 10 of S = 100 steps of warm-up; wsd stays at the peak until T = 70."""
    steps, peak = np.arange(101.0), 0.01
    if decay == "cosine":
        fall = peak * (0.1 + 0.9 * (1 + np.cos(np.pi * (steps - 10) / 90)) / 2)
    else:
        fall = peak * 10 ** -(np.maximum(steps - 70, 0) / 30)
    expected = np.where(steps < 10, peak * steps / 10, fall)
    rate = Schedule(100, 10, peak, 0.0, decay=decay, decay_share=0.3).rate()
    np.testing.assert_allclose([float(np.asarray(rate(step))) for step in range(101)], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, 5, 1e-3, 0.0), "warmup_steps 5"),
        ((5, 1, 0.0, 0.0), "learning_rate 0"),
        ((5, 1, 1e-3, 0.0, 1.0, 0), "0 must"),
        ((5, 1, 1e-3, 0.0, 1.0, 1, "wsd", 0.0), "decay_share 0.0 must lie above 0"),
        ((10, 6, 1e-3, 0.0, 1.0, 1, "wsd", 0.5), "warmup_steps 6 and the 5 of decay_share 0.5 exceed the 10 steps"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule(*values)
