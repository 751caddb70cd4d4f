"""The folder others open, and its model card."""
