"""The correlator: which facts are one incident, when it is over, and that nothing but the facts decides."""
