"""The aggregator: stores evidence, correlates it into incidents, judges them, and says what to do. Start with pipeline.py."""
