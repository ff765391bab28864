"""Dead letters seen from the operator's side: reading them, what became of them, sending them again."""
