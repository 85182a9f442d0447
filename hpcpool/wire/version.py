"""The package's version, kept apart so that a worker can know it without importing the package's face."""

VERSION = "0.1.0.dev0"
