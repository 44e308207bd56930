"""From a configuration to running sessions: graphs, their cache, devices."""
