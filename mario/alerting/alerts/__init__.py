"""Alert rules, one module per group."""
