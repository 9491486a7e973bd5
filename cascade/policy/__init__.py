"""Every decision of the cascade, and nothing else. Pure: time is an argument, events go in, commands come out."""
