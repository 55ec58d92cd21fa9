"""DeepMind's Reverb protocol as a second door to the same tables."""
