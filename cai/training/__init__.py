"""Loading models, and trl's trainers with checkpoints that resume by themselves."""
