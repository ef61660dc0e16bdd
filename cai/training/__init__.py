"""Training on trl: its arguments, tokens, losses and checkpoints, and guards that warn."""
