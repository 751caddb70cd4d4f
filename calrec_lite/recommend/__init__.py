"""Histories in, ranked lists of real items out."""

from calrec_lite.recommend.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]
