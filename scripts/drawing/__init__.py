"""What was measured, as a timeline in the terminal, as a picture, and in words."""
