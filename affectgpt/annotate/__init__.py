"""From raw clips to described clips: clues, descriptions and labels, each with where it came from."""
