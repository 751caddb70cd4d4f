"""One prompt cache a user and its continuations: beam search, exact scores, samples."""
