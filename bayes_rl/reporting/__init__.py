"""Learning curves, score tables and comparisons of runs."""
