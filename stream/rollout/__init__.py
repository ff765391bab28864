"""New models without downtime: where bundles are announced, and the watch that brings them into a worker."""
