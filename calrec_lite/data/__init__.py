"""Raw files in, a prepared domain on disk out: `sources` -> `readers` -> `prepare` -> `domain`."""
