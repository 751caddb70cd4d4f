"""CALRec from a history to a gradient: rows -> batch -> towers -> losses -> step (docs/method.md)."""
