"""Who serves what, how loaded: in go reports each second, out come tables for gateways and a view for people."""
