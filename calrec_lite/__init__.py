"""calrec-lite: finetune a pretrained LLM into a sequential recommender on one consumer GPU (CALRec, RecSys 2024).

What a library user needs stands here, and is loaded when it is asked for::

    from calrec_lite import CALRecConfig, CALRecTrainer, Recommender, load_recipe, train
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calrec_lite.recipe.file import load_recipe
    from calrec_lite.recommend.recommender import Recommendation, Recommender
    from calrec_lite.training.config import CALRecConfig
    from calrec_lite.training.stage import train
    from calrec_lite.training.trainer import CALRecTrainer

__version__ = "0.1.0"
__all__ = ["CALRecConfig", "CALRecTrainer", "Recommendation", "Recommender", "load_recipe", "train"]

_HOMES = {
    "CALRecConfig": "training.config",
    "CALRecTrainer": "training.trainer",
    "Recommendation": "recommend.recommender",
    "Recommender": "recommend.recommender",
    "load_recipe": "recipe.file",
    "train": "training.stage",
}

# bm25s starts JAX where that is installed, and JAX by itself takes three quarters of a GPU's memory as it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Where the package `kernels` is installed, transformers asks the Hub for compiled code: not without being told to.
os.environ.setdefault("USE_HUB_KERNELS", "NO")


def __getattr__(name: str) -> Any:
    """From its own module, which may import torch: not before it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module `calrec_lite` has no `{name}`")
    return getattr(import_module(f"calrec_lite.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
