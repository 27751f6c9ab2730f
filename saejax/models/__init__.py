"""Language models: `load(folder)` gives one whose inside can be read at hook points."""

from saejax.models.model import LanguageModel as LanguageModel
from saejax.models.model import RunOutput as RunOutput
from saejax.models.model import load as load
