"""From a person's own file to a first recipe: columns guessed, histories shown, a base chosen (`calrec-lite init`)."""
