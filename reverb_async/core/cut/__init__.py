"""A consistent cut through tables and stores: what they held at one moment, read in slices while they go on changing.

Slots and rows keep their numbers, so neither saving nor restoring has to translate what refers to them.
"""
