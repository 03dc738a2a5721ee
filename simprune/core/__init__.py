"""Types and small tools that every other folder uses; nothing here imports from another folder of simprune."""
