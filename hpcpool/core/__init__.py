"""Pure decisions: no socket, thread, clock, file or process; every function takes values and returns values."""
