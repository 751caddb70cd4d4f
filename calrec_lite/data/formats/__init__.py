"""Public data sets as their publishers write them: which files, which columns, what has to be done to them first."""
