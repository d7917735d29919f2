"""The machines that networks run on: chips as files describe them, this host, and how well an engine uses either."""
