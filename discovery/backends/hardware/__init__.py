"""What the machine offers: memory, container limits, devices, and where weights are placed."""
