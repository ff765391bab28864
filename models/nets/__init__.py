"""The networks, written for torch.jit.script and torch.export alike."""
