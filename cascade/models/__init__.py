"""The models of a ladder: what a stage must do, and the networks of the shipped ladders. Knows torch; no Ray, no policy."""
