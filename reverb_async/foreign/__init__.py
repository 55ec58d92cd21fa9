"""A client's way to a genuine dm-reverb server: our streams at one end, DeepMind's protocol at the other."""
