"""The LLM: loading, two towers, losses, merging."""
