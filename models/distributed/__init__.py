"""The processes and nodes that train together, and how they exchange the dense gradient."""
