"""calrec-lite: finetune a pretrained LLM into a sequential recommender on one consumer GPU (CALRec, RecSys 2024)."""

import os

__version__ = "0.1.0"

# bm25s starts JAX where that is installed, and JAX then takes three quarters of the GPU's memory for itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
