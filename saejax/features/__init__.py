"""Features over a corpus: codes of an SAE or coordinates of a hook, and who goes with whom across models."""
