"""Items and histories as token ids."""
