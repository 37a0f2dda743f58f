"""Other packages' ways to train with little communication, each beside the recipe here that computes the same."""
