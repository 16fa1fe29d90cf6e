"""The command line: composes the other rooms, has no logic of its own."""
