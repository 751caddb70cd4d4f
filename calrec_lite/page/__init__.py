"""Everything a run says about itself on one HTML page."""
