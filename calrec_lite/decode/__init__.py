"""One prompt cache a user, continuations below it: beam search, exact scores, samples."""
