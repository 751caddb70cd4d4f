"""Everything a recipe may say: typed, documented, strict. `file.py` reads and writes it."""

from calrec_lite.recipe.listing import Fused, Recommend, TowerSettings
from calrec_lite.recipe.measuring import Evaluate, Holdout, MiniLMSettings, SASRecSettings
from calrec_lite.recipe.section import Section, Share
from calrec_lite.recipe.sections import (
    Ablate,
    Base,
    Columns,
    DomainSpec,
    Export,
    Lora,
    Loss,
    Optim,
    Recipe,
    Stage,
    Text,
    require_domain,
    resolved,
)

__all__ = [
    "Ablate",
    "Base",
    "Columns",
    "DomainSpec",
    "Evaluate",
    "Export",
    "Fused",
    "Holdout",
    "Lora",
    "Loss",
    "MiniLMSettings",
    "Optim",
    "Recipe",
    "Recommend",
    "SASRecSettings",
    "Section",
    "Share",
    "Stage",
    "Text",
    "TowerSettings",
    "require_domain",
    "resolved",
]
