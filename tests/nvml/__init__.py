"""NVML: the child, the collector and the facts, on the real nvidia-ml-py over the C double."""
