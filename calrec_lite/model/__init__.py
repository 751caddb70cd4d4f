"""A base LLM: loading, adapters, merging, memory; it knows nothing of CALRec."""
