"""Files of histories, and catalogues, shared out among many machines by an engine that exists for it: Ray."""
