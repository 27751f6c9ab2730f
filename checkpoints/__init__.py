"""Shipped models: folders with weights, tokenizer and model card."""
