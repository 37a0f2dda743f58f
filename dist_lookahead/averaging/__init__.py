"""With whom a level averages."""
