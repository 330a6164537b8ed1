"""One file an arrow of the loop; the only place that wires the parts together."""
