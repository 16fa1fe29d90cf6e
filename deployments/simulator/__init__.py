"""An engine that behaves like a real one without a GPU: one scheduler core, in real time over HTTP and in virtual time.

Every figure that comes from here is simulated and must be marked so.
"""
