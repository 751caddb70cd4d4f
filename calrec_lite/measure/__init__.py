"""Who is measured, and by what: held-out cases, ranks, metrics and their intervals; no torch."""
