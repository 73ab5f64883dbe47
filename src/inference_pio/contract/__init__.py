"""What an optimization is: its interface, its settings, its sites, its receipt, and the registry that knows it."""
