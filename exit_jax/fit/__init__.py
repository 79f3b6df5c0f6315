"""What a config would take on a TPU slice: memory by the compiler, time by the roofline."""
