"""The catalogues of pure stages that a round's numbers pass through, and the pipeline made of them."""
