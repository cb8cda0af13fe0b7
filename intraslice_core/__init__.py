"""IntraSlice engine: block-wise, module-intra PCA compression of decoder language models.

Importing the package loads neither torch nor transformers, so that the service can share its
settings and its plan arithmetic; heavy modules are imported by name where they are used.
"""

__version__ = "0.1.0"
