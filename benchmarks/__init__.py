"""The benchmarks: the same work on hpcpool and its peers, side by side; not part of the installed package."""
