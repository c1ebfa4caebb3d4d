"""A day of training, on one process or on several ranks, and the size of its model before training."""
