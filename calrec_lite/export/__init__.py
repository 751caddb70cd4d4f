"""The exported folder and its model card."""
