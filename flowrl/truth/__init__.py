"""Ground truth: dynamic programming, search in large cities, exact gradients and log-probabilities."""
