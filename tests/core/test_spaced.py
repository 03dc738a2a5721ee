"""Some positions of large maps: distinct, spread over the whole map, the first among them."""

import pytest
import torch

from simprune.core.spaced import LEAST, enough, spaced


@pytest.mark.parametrize("positions, most", [(128, 64), (1000, 3), (3136, 288), (12544, 64)])
def test_positions_are_distinct_and_nowhere_far_apart(positions, most):
    places = spaced(positions, most)
    assert places is not None and places[0] == 0 and len(places) == most
    steps = places.diff(append=torch.tensor([positions]))
    assert steps.min() >= 1 and steps.max() <= 2 * positions / most + 1


def test_all_positions_are_read_unless_there_are_twice_as_many():
    assert spaced(127, 64) is None
    assert spaced(128, 64) is not None
    assert enough(1) == LEAST and enough(4608) == 1152
