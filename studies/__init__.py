"""What measures raylane itself. Not in the wheel; run from a checkout. See README.md."""
