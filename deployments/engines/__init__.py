"""One inference server as a child process: in go a config and what a replica was given, out comes a server that has
proven itself by a token."""
