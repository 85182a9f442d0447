"""Real pools whose processes are really killed: every future finishes, and nothing is left behind."""
