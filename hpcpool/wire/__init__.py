"""What travels between processes: typed messages, their codec, and pickled payloads. No sockets are opened here."""
