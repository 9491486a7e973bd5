"""Load tests: an open-loop generator in Locust, its scenarios, its recordings, and the verdict on them. Knows no Ray."""
