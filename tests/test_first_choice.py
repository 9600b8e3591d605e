"""What is lost with the first choice, on cases that are counted by hand."""

import torch

from benchmarks.first_choice import first_choice


def test_the_narrow_door_under_a_uniform_policy():
    """Notebook 10: behind a first choice of 0 only 0 is valid; nothing is dead, but 0 is executed in 1 of 133 steps."""
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    valid[0, 0, 1:] = False
    found = first_choice(torch.full((1, 144), 1 / 144).log(), valid.flatten(1), 12)
    assert abs(found["refused"] - 11 / 144) < 1e-6
    assert found["dead_end"] == 0
    assert abs(found["bent"] - (1 / 12 - 1 / 133)) < 1e-6


def test_a_first_choice_that_nothing_valid_begins_with():
    """Two states: in the first, first choice 1 of 2 is dead and has mass 0.3; in the second all is valid."""
    prob = torch.tensor([[[0.5, 0.2], [0.1, 0.2]], [[0.25, 0.25], [0.25, 0.25]]])
    valid = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]]])
    found = first_choice(prob.flatten(1).log(), valid.flatten(1), 2)
    assert abs(found["refused"] - 0.5 / 2) < 1e-6
    assert abs(found["dead_end"] - 0.3 / 2) < 1e-6
    assert abs(found["bent"] - 0.3 / 2) < 1e-6
