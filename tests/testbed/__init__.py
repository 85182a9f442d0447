"""Real batch systems, small ones, which these tests install from Debian and start by themselves."""
