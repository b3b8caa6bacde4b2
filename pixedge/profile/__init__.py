"""What a model does on this machine: seconds by stage, memory by phase, and how near the machine's limits."""
