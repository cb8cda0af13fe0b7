"""IntraSlice engine: layer-wise, intra-module PCA compression of decoder language models.

Importing the package loads neither torch nor transformers, so that the service can use its settings
and shape arithmetic. Modules that need them are imported where they are used.
"""

__version__ = "0.1.0"
