"""Serving: scores requests with an exported model. Imports neither torch nor mlflow."""
