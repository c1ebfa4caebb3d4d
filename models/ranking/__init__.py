"""The ranker that a checkpoint holds: its dense network, optimizer, precision, and where it computes."""
