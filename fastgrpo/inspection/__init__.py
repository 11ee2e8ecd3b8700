"""What a run would begin with: its prompts, some responses of its base model, their verdicts, and what they teach."""
