"""Batches of encoded rows from a samples file."""
