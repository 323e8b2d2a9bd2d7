"""Capture of a PyTorch model as a canonical FX graph, and facts about it."""
