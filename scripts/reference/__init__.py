"""The parts of the script that trains the reference models; the package itself never imports them."""
