"""FLUX as this server runs it: a lean forward, and what stands before and after it, over diffusers' weights."""
