"""Which users and systems are measured, and how: `protocol` draws cases, `metrics` scores lists, `compare` tests."""
