"""Joins text and models: small language models of several seeds, trained from scratch on one corpus.

All seeds share the tokenizer and the order of the data, so that they differ in their initial weights only.
"""

from saejax.pretraining.config import PretrainConfig as PretrainConfig
from saejax.pretraining.run import plan as plan
from saejax.pretraining.run import pretrain as pretrain
