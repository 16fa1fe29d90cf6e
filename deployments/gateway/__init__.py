"""One address for all models: in come HTTP requests, out go the bytes of the engine that was picked."""
