"""How good scores are, and whether the difference between two models is more than chance."""
