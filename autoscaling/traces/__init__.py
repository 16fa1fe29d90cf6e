"""What arrives when, and how long it is: recorded request traces, rate curves and synthetic load shapes."""
