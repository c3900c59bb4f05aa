"""When incidents are looked into, in which order, and that each look ends."""
