"""The online store of features: the state of each key at the end of a day, the rows of today, and requests."""
