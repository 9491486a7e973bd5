"""The models of a ladder: what a stage must do, and the networks that the shipped ladders use. Knows torch; no Ray, no policy."""
