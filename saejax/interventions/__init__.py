"""Language models with something of ours inside: an SAE's reconstruction in the place of what it reads."""
