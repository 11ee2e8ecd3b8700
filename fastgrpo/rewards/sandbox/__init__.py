"""Programs that a model wrote, in a process that can do nothing but compute."""
