"""Batches, embeddings, architectures, metrics, training, checkpoints and export."""
