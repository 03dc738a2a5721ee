"""Reading a network: how it runs, what is coupled in it, what it costs; the network stays as it was."""
