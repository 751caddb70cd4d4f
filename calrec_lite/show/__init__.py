"""One list as a person looks at it, by an export or a run."""
