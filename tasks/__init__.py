"""The steps of the daily loop, the step contract, the store, the chain and tracking."""
