"""The command line: each command is a module. Nothing here is imported by the rest of the package."""
