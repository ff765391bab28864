"""The same job as others would write it: good practice of each, and no cost that they need not have."""
