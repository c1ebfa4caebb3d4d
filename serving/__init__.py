"""What runs where the registered model is loaded."""
