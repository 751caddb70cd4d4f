"""The grid of `calrec-lite ablate`: cells, their training and evaluation, one table."""
