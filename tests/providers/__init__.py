"""The batch systems and how they are found."""
