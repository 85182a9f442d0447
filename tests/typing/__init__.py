"""The types that users' programs see."""
