"""Models: from samples to a trained checkpoint and its serving export. The only room that imports torch."""
