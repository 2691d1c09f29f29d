"""Files and devices."""
