"""What a training will take, before it begins: rows, steps, memory, time, disk."""
