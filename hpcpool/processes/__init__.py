"""The processes at the edge: client, interchange, manager, fork server, worker. No decision is made here."""
