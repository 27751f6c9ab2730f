"""Activations on disk: the store and its ledger, extraction from a model, shuffled and sequential reading."""
