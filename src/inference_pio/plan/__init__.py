"""From names or a profile to a frozen, printable plan, made on a skeleton before the first edit."""
