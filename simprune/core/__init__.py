"""Types and small tools that every other folder uses. Imports torch and numpy, and nothing of simprune."""
