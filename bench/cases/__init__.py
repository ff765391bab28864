"""One module per case; each has `run(job, quick) -> figures`. The names are fixed: results are compared by them."""
