"""Histories in, ranked lists of real items out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calrec_lite.recommend.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]


def __getattr__(name: str) -> Any:
    """When it is asked for: it imports torch, which files of histories do without."""
    if name not in __all__:
        raise AttributeError(f"module `calrec_lite.recommend` has no `{name}`")
    from calrec_lite.recommend import recommender

    return getattr(recommender, name)
