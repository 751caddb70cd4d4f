"""calrec-lite: finetune a pretrained LLM into a sequential recommender on one consumer GPU (CALRec, RecSys 2024)."""

__version__ = "0.1.0"
