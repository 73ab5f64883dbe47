"""Models that compute with spikes: layers of neurons, their quantized twin, what they cost, and where they may go."""
