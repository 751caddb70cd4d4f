"""`python -m calrec_lite` is the command line."""

from calrec_lite.cli import main

main()
