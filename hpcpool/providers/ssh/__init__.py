"""Other machines over SSH: a login node to drive a batch system from, or hosts that are themselves the nodes."""
