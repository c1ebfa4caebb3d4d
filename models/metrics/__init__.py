"""Metrics of scores, and comparisons of two models that say if their difference is more than chance."""
