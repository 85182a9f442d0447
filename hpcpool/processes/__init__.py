"""The processes at the edge, one a file: client, interchange, manager, fork server, worker. No decision is made here."""
