"""Where things are in a model: roles by structure, walks over them, and which models are refused."""
