"""The tests of hpcpool: a regular package, so that a `tests` of another distribution cannot hide it from workers."""
