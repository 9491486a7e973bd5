"""The peers' own servers with the cascade in their predict function, the two floors, and the environments they run in."""
