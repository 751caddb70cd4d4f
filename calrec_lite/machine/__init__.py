"""What this machine has, whether it works together, and which bases fit: `doctor`, `bases` and `init`'s choice."""
