"""Activations that others have stored, made into stores: a file per format, and the verb that reads any of them."""

from saejax.activations.imports.run import ImportConfig as ImportConfig
from saejax.activations.imports.run import import_activations as import_activations
