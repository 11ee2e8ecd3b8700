"""SimpleRL-Zoo: ten base models, each as published and with a format reward."""
