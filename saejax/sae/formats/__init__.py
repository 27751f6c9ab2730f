"""SAEs that others have trained, made into runs of kind "sae": a file per format, and the verb that reads any."""

from saejax.sae.formats.run import ImportSAEConfig as ImportSAEConfig
from saejax.sae.formats.run import import_sae as import_sae
