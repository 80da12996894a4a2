"""Recorded runs of this project: how they are recorded, what is read from them, and how they are shown."""
