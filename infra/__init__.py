"""What surrounds the loop on a machine: the environment, the lock, the local servers of the demo."""
