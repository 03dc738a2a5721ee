"""What is held out depends on the number of an input, and never on the batches."""

import pytest
import torch

from simprune.core.holdout import Counting, held_out


@pytest.mark.parametrize("share", [4, 8])
def test_batches_do_not_matter(share):
    whole = held_out(0, 500, share=share)
    for size in (1, 7, 64):
        counting, parts = Counting(), []
        for batch in torch.arange(500).split(size):
            counting.begin(len(batch))
            parts.append(counting.held_out(share=share))
        assert torch.equal(torch.cat(parts), whole)


def test_a_fifth_to_a_third_of_every_set_is_held_out():
    for inputs in range(4, 2000):
        assert inputs / 5 <= int(held_out(0, inputs).sum()) <= inputs / 3
    assert held_out(0, 2).tolist() == [False, True]


def test_rows_of_an_input_stay_together_and_rows_of_no_input_are_never_held_out():
    assert torch.equal(held_out(6, 10, rows=30), held_out(6, 10).repeat_interleave(3))
    assert not held_out(0, 10, rows=1).any()
