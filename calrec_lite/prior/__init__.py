"""Where the logits of the catalogue softmax start for a user: popularity, mixed with the user's own transitions."""
