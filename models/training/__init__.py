"""A day of training, on one process or on several ranks, and the size of what it would hold."""
