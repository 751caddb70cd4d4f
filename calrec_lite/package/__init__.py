"""A model folder that recommends: what it holds, how it is written and opened, how it goes to the Hub."""
