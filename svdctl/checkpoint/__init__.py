"""Any checkpoint that a user brings: read without executing anything, its layers recognised, its network rebuilt."""
